"""Models of packages on PyPI, with random weights and small: what the zoo of `zoo.py` is made of.

A source lists its models and builds one by name. The packages need not be installed together: a source whose package
is missing has no models. torchvision is never needed: where a package imports it for its data transforms, an empty
stand-in takes its place, so that the models can be built.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import pkgutil
import re
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

MAX_PARAMETERS = 40_000_000


class TooLarge(Exception):
    """A model with more parameters than the zoo has time for."""


# Packages that want torchvision ---------------------------------------------------------------------------------------


class _Named(type):
    """A class of which every attribute is its name, so that enumerations of it can be read."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _Anything(types.ModuleType):
    """A module in which every name is an empty class."""

    __path__ = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = _Named(name, (), {"__init__": lambda self, *args, **kwargs: None})
        setattr(self, name, made)
        return made


class _StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Answers imports of torchvision with empty modules."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] != "torchvision":
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Anything(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        module.__version__ = "0.0"  # type: ignore[attr-defined]


def _stand_in_for_torchvision() -> None:
    """Let packages import torchvision where it is not installed."""
    if importlib.util.find_spec("torchvision") is None:
        sys.meta_path.append(_StandIn())


# transformers ---------------------------------------------------------------------------------------------------------

# Sizes by words in an attribute's name; the first that is found counts.
SMALL: tuple[tuple[str, int], ...] = (
    (r"^(num_|n_)?(encoder_|decoder_|text_|vision_)?(num_)?(hidden_)?layers?$|_layers$|^n_layers?$|^depth$", 2),
    (r"vocab_size", 99),
    (r"^(num_|n_|encoder_|decoder_)?(attention_|attn_)?heads?$|num_attention_heads|attention_heads$|n_head$", 4),
    (r"num_key_value_heads|num_kv_heads", 2),
    (r"head_dim$|kv_channels|qk_rope|qk_nope|v_head", 16),
    (r"q_lora_rank|kv_lora_rank", 16),
    (r"num_(local_|routed_)?experts$|n_routed_experts|moe_num_experts", 4),
    (r"experts_per_tok|top_?k", 2),
    (r"intermediate|ffn_dim|d_ff|n_inner|feed_?forward|mlp_dim|ffn", 64),
    (r"hidden_size|d_model|n_embd|embed_dim|embedding_size|model_dim|^dim$|projection_dim|hidden_dim$", 64),
    (r"max_position|n_positions|max_seq|max_source|max_target|n_ctx", 64),
)
KEPT = re.compile(r"token_id|_ratio|kernel|stride|patch|channels|bias|classes|labels|^_")


def shrink(config: Any, nesting: int = 0) -> Any:
    """Set every size of a transformers configuration, and of those inside it, to a small one."""
    staged = any(isinstance(value, (list, tuple)) and "head" in name for name, value in vars(config).items())
    for name, value in list(vars(config).items()):
        if nesting < 3 and hasattr(value, "model_type") and hasattr(value, "to_dict"):
            shrink(value, nesting + 1)
        elif type(value) is int and value > 2 and not KEPT.search(name):
            small = next((size for pattern, size in SMALL if re.search(pattern, name)), None)
            if staged and re.search("embed_dim|hidden", name):
                continue  # widths that the heads of each stage divide
            if small is not None and small < value:
                _set(config, name, small)
    for name, value in list(vars(config).items()):
        if name.endswith("token_id") and type(value) is int and value >= 99:
            _set(config, name, 1)
        if name == "layer_types" and isinstance(value, list):  # one layer of each kind
            kinds = list(dict.fromkeys(value))
            depth = max(len(kinds), getattr(config, "num_hidden_layers", 2))
            _set(config, "num_hidden_layers", depth)
            _set(config, name, [kinds[index % len(kinds)] for index in range(depth)])
    return config


def _set(config: Any, name: str, value: Any) -> None:
    try:
        setattr(config, name, value)
    except (AttributeError, TypeError, ValueError, NotImplementedError):
        return  # a property without setter: the default stays


def _transformers() -> Iterator[str]:
    from transformers.models.auto import modeling_auto

    for architecture in sorted(modeling_auto.MODEL_MAPPING_NAMES):
        yield architecture
    for task in ("CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "MASKED_LM", "IMAGE_CLASSIFICATION", "AUDIO_CLASSIFICATION"):
        names = getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES", {})
        for architecture in sorted(names)[::6]:
            yield f"{architecture}:MODEL_FOR_{task}_MAPPING"


def _transformer(name: str) -> nn.Module:
    import transformers
    from transformers.models.auto import modeling_auto

    architecture, _, mapping = name.partition(":")
    config = transformers.CONFIG_MAPPING[architecture]()
    classes = getattr(modeling_auto, mapping or "MODEL_MAPPING")[type(config)]
    cls = classes[0] if isinstance(classes, tuple) else classes
    try:
        return cls(shrink(config))
    except (ValueError, TypeError, RuntimeError, AssertionError, ZeroDivisionError, KeyError, IndexError):
        config = transformers.CONFIG_MAPPING[architecture]()
        for key in ("num_hidden_layers", "num_layers", "n_layer", "encoder_layers", "decoder_layers"):
            if type(getattr(config, key, None)) is int:
                _set(config, key, 2)
        with torch.device("meta"):
            _limit(cls(config))
        return cls(config)


# timm -----------------------------------------------------------------------------------------------------------------

SMALLEST = ("test_", "atto", "femto", "pico", "nano", "xxs", "tiny", "_xs", "small", "mini", "050", "18", "s0", "b0")


def _timm() -> Iterator[str]:
    import timm

    for module in sorted(timm.list_modules()):
        names = timm.list_models(module=module)
        if names:
            yield min(names, key=lambda name: (next((i for i, s in enumerate(SMALLEST) if s in name), 99), name))


def _timm_model(name: str) -> nn.Module:
    import timm

    with torch.device("meta"):
        _limit(timm.create_model(name))
    return timm.create_model(name)


# Classes whose arguments are inferred ---------------------------------------------------------------------------------

# Arguments where the inferred ones build something that no user would.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "x_transformers.x_transformers:XTransformer": {
        "dim": 64, "enc_num_tokens": 99, "enc_depth": 2, "enc_heads": 4, "enc_max_seq_len": 64,
        "dec_num_tokens": 99, "dec_depth": 2, "dec_heads": 4, "dec_max_seq_len": 64,
    },
    "denoising_diffusion_pytorch.denoising_diffusion_pytorch:Unet": {"dim": 16, "dim_mults": (1, 2)},
    "denoising_diffusion_pytorch.karras_unet:KarrasUnet": {"image_size": 32, "dim": 32, "dim_max": 64},
    "perceiver_pytorch.perceiver_pytorch:Perceiver": {
        "num_freq_bands": 4, "depth": 2, "max_freq": 10.0, "num_latents": 16, "latent_dim": 32, "num_classes": 10,
    },
    "performer_pytorch.performer_pytorch:PerformerLM": {
        "num_tokens": 99, "max_seq_len": 64, "dim": 64, "depth": 2, "heads": 4,
    },
}  # fmt: skip


# Names of classes that are parts of models: nobody audits them alone, and their inputs have no meaning of their own.
PARTS = (
    r"^_|Block|Layers?$|Attention|Head|Norm|Emb|Wrapper|Bottleneck|Estimator|Processor|Scale|Bias|Proj|Mixin|Loss|Feed"
)


def _classes(*modules: str) -> Callable[[], Iterator[str]]:
    """The modules that classes of these packages or modules define, one per class, with a forward of their own."""

    def listed() -> Iterator[str]:
        for name in modules:
            top = importlib.import_module(name)
            parts = pkgutil.iter_modules(getattr(top, "__path__", ()), f"{name}.")
            for part in (name, *sorted(part.name for part in parts)):
                try:
                    module = importlib.import_module(part)
                except Exception:  # what it needs is not installed
                    continue
                yield from (
                    f"{part}:{key}"
                    for key, value in vars(module).items()
                    if inspect.isclass(value)
                    and issubclass(value, nn.Module)
                    and value.__module__ == part
                    and not re.search(PARTS, key)
                    and value.forward is not nn.Module.forward
                )

    return listed


def _class(name: str) -> nn.Module:
    from auditor.dynamic.target import find_targets

    configured = {name.partition(":")[2]: {"kwargs": ARGUMENTS[name]}} if name in ARGUMENTS else {}
    targets, problems = find_targets(name, configured, limit=4 * MAX_PARAMETERS)
    if targets and targets[0].large:
        raise TooLarge(f"more than {MAX_PARAMETERS:,} parameters")
    if not targets:
        raise ValueError(problems[0].message if problems else "nothing found")
    return targets[0].factory()


def _pytorchcv() -> Iterator[str]:
    from pytorchcv.model_provider import _models

    families: dict[str, list[str]] = {}
    for name, function in _models.items():
        families.setdefault(function.__module__, []).append(name)
    for module in sorted(families):
        yield min(families[module], key=lambda name: ("cifar10" not in name, len(name), name))


def _pytorchcv_model(name: str) -> nn.Module:
    from pytorchcv.model_provider import get_model

    with torch.device("meta"):
        _limit(get_model(name))
    return get_model(name)


def _segmentation() -> Iterator[str]:
    import segmentation_models_pytorch as smp

    yield from sorted(smp.MODEL_ARCHITECTURES_MAPPING)


def _segmentation_model(name: str) -> nn.Module:
    import segmentation_models_pytorch as smp

    return smp.create_model(name, encoder_name="mobilenet_v2", encoder_weights=None, classes=5)


def _limit(model: nn.Module) -> None:
    """Raise TooLarge if the model, on the meta device, has too many parameters."""
    count = sum(parameter.numel() for parameter in model.parameters())
    if count > MAX_PARAMETERS:
        raise TooLarge(f"{count:,} parameters")


WANT_TORCHVISION = (
    "timm", "vit-pytorch", "denoising-diffusion", "segmentation-models", "perceiver", "x-transformers", "pytorchcv",
)  # fmt: skip

Source = tuple[Callable[[], Iterator[str]], Callable[[str], nn.Module]]
SOURCES: dict[str, Source] = {
    "transformers": (_transformers, _transformer),
    "timm": (_timm, _timm_model),
    "vit-pytorch": (_classes("vit_pytorch"), _class),
    "x-transformers": (_classes("x_transformers.x_transformers", "x_transformers.continuous"), _class),
    "diffusers": (
        _classes("diffusers.models.transformers", "diffusers.models.unets", "diffusers.models.autoencoders"),
        _class,
    ),
    "monai": (_classes("monai.networks.nets"), _class),
    "denoising-diffusion": (_classes("denoising_diffusion_pytorch"), _class),
    "torch_geometric": (_classes("torch_geometric.nn.conv", "torch_geometric.nn.models.basic_gnn"), _class),
    "pytorchcv": (_pytorchcv, _pytorchcv_model),
    "segmentation-models": (_segmentation, _segmentation_model),
    "braindecode": (_classes("braindecode.models"), _class),
    "kornia": (_classes("kornia.feature", "kornia.models"), _class),
    "rtdl": (_classes("rtdl_revisiting_models"), _class),
    "efficientnet": (_classes("efficientnet_pytorch"), _class),
    "perceiver": (_classes("perceiver_pytorch"), _class),
    "performer": (_classes("performer_pytorch"), _class),
}


def names(source: str) -> list[str]:
    """The models of a source; none where its package cannot be imported."""
    prepare(source)
    try:
        return list(SOURCES[source][0]())
    except ImportError:
        return []


def prepare(source: str) -> None:
    """Make the package of a source importable in this process."""
    if source in WANT_TORCHVISION:
        _stand_in_for_torchvision()


def build(source: str, name: str) -> nn.Module:
    """Build one model with random weights; raises what its constructor raises, and TooLarge."""
    prepare(source)
    model = SOURCES[source][1](name)
    _limit(model)
    return model
