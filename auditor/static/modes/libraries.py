"""What libraries' own names say about a model's mode: constructors, wrappers, calls that leave the mode alone."""

from __future__ import annotations

import re

from auditor.static.names import Names

# Wrappers that hand on the mode of what they wrap, so that both names stand for one model.
WRAPPERS = frozenset(
    {
        "DataParallel",
        "DistributedDataParallel",
        "DistributedDataParallelCPU",
        "DDP",
        "FSDP",
        "FullyShardedDataParallel",
        "convert_sync_batchnorm",
        "convert_syncbn_model",
        "torch.compile",
        "torch.jit.script",
        "weight_norm",
        "spectral_norm",
    }
)
# Methods of a module that return it unchanged in mode.
CHAINING = frozenset(
    {
        "to", "cuda", "cpu", "xpu", "npu", "mps", "half", "float", "double", "bfloat16", "type", "to_empty",
        "requires_grad_", "share_memory",
    }
)  # fmt: skip
# Methods that leave the mode alone and return no model.
HARMLESS_METHODS = frozenset(
    {
        "state_dict", "load_state_dict", "parameters", "named_parameters", "buffers", "named_buffers",
        "zero_grad", "forward", "compile", "register_forward_hook", "register_forward_pre_hook",
        "register_full_backward_hook", "register_buffer", "register_parameter", "add_module", "register_module",
        "get_parameter", "get_buffer", "named_hooks", "__repr__", "extra_repr", "num_params", "numel", "size",
        "shape", "no_sync", "accumulate", "backward", "step", "item", "detach", "update", "append", "extend",
        "get", "items", "keys", "values", "split", "format", "join", "save", "save_pretrained",
        "save_state_dict", "load_weights", "init_weights", "initialize_weights", "reset_parameters",
        "weights_init", "init_hidden", "initHidden", "init_state", "get_loss", "loss", "get_input_embeddings",
        "resize_token_embeddings", "gradient_checkpointing_enable", "enable_input_require_grads", "set_epoch",
    }
)  # fmt: skip
SUBMODULES = frozenset({"modules", "children", "named_modules", "named_children", "get_submodule"})
BUILTINS = frozenset(
    {
        "print", "len", "isinstance", "issubclass", "hasattr", "getattr", "type", "id", "str", "repr", "int",
        "float", "bool", "sum", "min", "max", "abs", "round", "zip", "range", "enumerate", "list", "tuple",
        "dict", "set", "frozenset", "sorted", "reversed", "next", "iter", "map", "filter", "any", "all",
        "format", "vars", "dir", "hash", "callable", "open", "input", "super", "object", "property",
    }
)  # fmt: skip
# Functions of other files whose names say that they only look at the model or at its parameters.
_HARMLESS_WORDS = (
    r"(?i)(?:^|_)(?:save|print|log|count|num|summary|summarize|watch|optimizer|optim|scheduler|criterion|seed|init|param"
    r"|params|parameters|flops|describe|plot|draw|info|dump|display)(?:_|$)|(?:optimizer|scheduler)s?$"
)
_SWITCHING_WORDS = (
    r"train|eval|mode|fit|freeze|test|valid|predict|infer|run|setup|prepare|start|finish|begin|end|before|after|on_|step"
    r"|switch|enable|disable|phase|optimi|update|learn|generate|sample|load|build|create|configure|state|status|reset"
)
_TORCH_UNKNOWN = (
    "torch.quantization",
    "torch.ao",
    "torch.fx",
    "torch.export",
    "torch.multiprocessing",
    "torch.package",
)
_LOADERS = frozenset({"torch.load", "torch.jit.load", "torch.hub.load", "torch.export.load", "torch.package.load"})

# Families whose models hold BatchNorm, Dropout or stochastic depth by default.
_TORCHVISION = (
    r"(?:quantization\.)?(?:alexnet|vgg|resnet|resnext|wide_resnet|densenet|inception|googlenet|squeezenet|shufflenet"
    r"|mobilenet|mnasnet|efficientnet|regnet|convnext|swin|ResNet|VGG|DenseNet|MobileNet|EfficientNet|AlexNet|Inception3"
    r"|GoogLeNet)\w*$|segmentation\.\w+$|video\.\w*(?:r3d|mc3|r2plus1d|s3d)\w*$"
)
_TIMM = (
    r"(?:tf_|tv_|gluon_|ssl_|swsl_|ig_|legacy_|se|ecaresnet|cspresnet|cspdarknet|darknet)*"
    r"(?:resnet|resnext|wide_resnet|densenet|efficientnet|mobilenet|mnasnet|regnet|inception|xception|dpn|dla|hrnet|res2net"
    r"|vgg|ghostnet|fbnet|rexnet|skresnet)"
)


def is_wrapper(names: Names, tail: str) -> bool:
    """Whether a call of this callee returns its first argument, wrapped but in the same mode."""
    if names:
        return all(name in WRAPPERS or (name.rpartition(".")[2] in WRAPPERS and name != tail) for name in names)
    return tail in WRAPPERS


def is_loader(names: Names) -> bool:
    """Whether the callee loads an object that some other program has put in a mode."""
    return bool(names) and names <= _LOADERS


def is_harmless(names: Names, tail: str) -> bool:
    """Whether a function that is given a model surely or very likely leaves its mode alone."""
    if names and all(name.startswith("torch.") for name in names):
        return not any(name.startswith(_TORCH_UNKNOWN) for name in names)
    if not names and tail in BUILTINS:
        return True
    return bool(re.search(_HARMLESS_WORDS, tail))


def may_switch(method: str) -> bool:
    """Whether the name of a method that is not seen leaves it open that it changes the mode of its object."""
    return bool(re.search(_SWITCHING_WORDS, method)) or not method.islower()


def builds_library_model(names: Names) -> bool:
    """Whether the callee is a library's function or class that builds a model in train mode."""
    if len(names) != 1:
        return False
    (name,) = names
    return name == "timm.create_model" or (name.startswith("torchvision.models.") and not name.endswith("_Weights"))


def library_dependence(names: Names, first_argument: object) -> bool | None:
    """Whether the library model that the callee builds surely depends on its mode; None if that is not known."""
    (name,) = names
    if name == "timm.create_model":
        return True if isinstance(first_argument, str) and re.match(_TIMM, first_argument) else None
    tail = name.removeprefix("torchvision.models.")
    head, _, rest = tail.partition(".")
    return True if re.match(_TORCHVISION, rest if head in _FILES else tail) else None


_FILES = frozenset({"resnet", "vgg", "densenet", "mobilenet", "alexnet", "inception", "googlenet", "efficientnet"})
