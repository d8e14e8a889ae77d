"""How to call a constructor: from the file's own calls, configuration classes, names and annotations."""

from __future__ import annotations

import ast
import dataclasses
import enum
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

CONFIG_NAME = re.compile(r"^(.*_)?(config|cfg|conf|args|opts?|hparams|hps|hp|params|options|settings)$")
MODEL_NAME = re.compile(
    r"^(?!d_model|dim_model|n_model)(.*_)?"
    r"(model|net|network|backbone|encoder|decoder|module|base|student|teacher|vit|transformer)$"
)

# The first pattern that is found in a parameter's name gives its value: small, and so that they fit each other
# (widths are divisible by head counts and groups, images by patches).
INTEGERS: tuple[tuple[str, int], ...] = (
    (r"class|label|action|^nc$|n_cls|num_cls", 10),
    (r"vocab|ntoken|n_?words|num_tokens|num_embeddings|n_items|n_users|num_items|num_users|num_nodes|dict_size", 100),
    (r"heads?$|nhead|_heads_|group_size", 4),
    (r"head_dim|dim_head|d_k$|d_v$|d_head|head_size|qkv_dim", 8),
    (r"layers?$|depth|blocks?$|n_layer|stages|repeat|num_stack|hops", 2),
    (r"kernel|^ks?$|filter_size", 3),
    (r"stride|dilation|groups|cardinality|seed|padding_idx|pad_idx|pad_token|n_frames_cond", 1),
    (r"^padding$|^pad$", 1),
    (r"patch", 8),
    (r"ima?ge?_?(size|h|w|height|width|res)|resolution|^height$|^width$|^h$|^w$", 32),
    (r"timesteps|n_steps|num_steps|diffusion_steps", 100),
    (r"max_len|max_seq|block_size|context|n_ctx|max_pos|positions|max_length", 64),
    (r"seq|length|^len$|^t$|window|horizon|frames|num_patches|_len$", 16),
    (r"experts", 4),
    (r"top_?k|ratio|mult|expansion|factor|scale|reduction|^r$|rank", 2),
    (r"^(in|input|img|image|n|num)_?(channels?|ch|chans?|c|planes|nc)$|^c_?in$|channels_in|^inp$|colou?rs", 3),
    (r"^n_?[gd]?f$|base_c|filters|planes|channels?|chans|^ch$|c_out|oup", 16),
    (r"d_?ff|ffn|mlp|feed_?forward|inner|intermediate", 64),
    (r"^(out|output|o)_?(dim|size|features|shape|d|f)?$|d_out|n_out", 10),
    (r"^(in|input|i|obs|state|feature)_?(dim|size|features|d|f)?$|d_in|n_in$|n_features|num_features|in_feat", 16),
    (r"latent|^nz$|^z|noise|bottleneck", 16),
    (r"dim|hidden|d_model|embed|emb|feature|unit|width|size|model|^d$|^c$|inplanes|n_embd", 32),
    (r"^n|num|count|^k$", 4),
)
FLOATS: tuple[tuple[str, float], ...] = (
    (r"drop|^p$|prob|rate$", 0.1),
    (r"eps", 1e-5),
    (r"momentum|slope", 0.1),
    (r"lr|learning", 1e-3),
    (r"std|sigma|init_range|initializer", 0.02),
    (r"theta|base|freq", 10000.0),
    (r"temp|tau|alpha|beta|gamma|lambda|weight|scale|margin|bound|ratio|mult", 1.0),
)
STRINGS: tuple[tuple[str, str], ...] = (
    (r"act|nonlin", "relu"),
    (r"pad", "zeros"),
    (r"interp|upsample|mode", "bilinear"),
    (r"pool|reduc|aggr", "mean"),
    (r"norm", "batch"),
    (r"rnn|cell", "LSTM"),
)
SEQUENCES: tuple[tuple[str, tuple[int, ...]], ...] = (
    (r"layers|depths|blocks|repeats", (2, 2, 2, 2)),
    (r"(ima?ge?|input|obs)_?(shape|dim)", (3, 32, 32)),
    (r"kernel|filter_size", (3, 3)),
    (r"size|resolution", (32, 32)),
    (r"stride|dilation", (1, 1)),
    (r"heads", (4, 4, 4, 4)),
    (r"channels|filters|dims|widths|planes|features|mult", (16, 32, 64, 128)),
    (r"", (32, 32)),
)
CLASSES: tuple[tuple[str, type[nn.Module]], ...] = (
    (r"norm", nn.BatchNorm2d),
    (r"act|nonlin", nn.ReLU),
    (r"conv", nn.Conv2d),
    (r"linear|proj", nn.Linear),
    (r"pool", nn.MaxPool2d),
)


@dataclass(frozen=True)
class Argument:
    """One argument: how it is printed (a function where only its use tells), and how it is made anew each time."""

    text: str | Callable[[], str]
    make: Callable[[], Any]

    def __str__(self) -> str:
        return self.text if isinstance(self.text, str) else self.text()


@dataclass(frozen=True)
class Call:
    """All arguments of one construction. `source`: "defaults", "configured", "file" or "inferred"."""

    args: tuple[Argument, ...]
    kwargs: dict[str, Argument]
    source: str

    def __str__(self) -> str:
        return ", ".join([*map(str, self.args), *(f"{name}={argument}" for name, argument in self.kwargs.items())])

    def apply(self, function: Callable[..., Any]) -> Any:
        return function(*(a.make() for a in self.args), **{name: a.make() for name, a in self.kwargs.items()})


MISSING = re.compile(r"missing \d+ required (?:positional|keyword-only) arguments?: (.*)$")

T = typing.TypeVar("T")


class Unknown(Exception):
    """No value is known for a parameter."""


@dataclass(frozen=True)
class Scope:
    """Where arguments are looked for: the user's module, its syntax tree, and models already known to build."""

    module: types.ModuleType
    tree: ast.Module | None = None
    models: tuple[Argument, ...] = ()


def constant(value: Any) -> Argument:
    """An argument with a plain value; mutable ones are copied by writing them out each time."""
    if isinstance(value, (list, dict, set)):
        copy = type(value)
        return Argument(repr(value), lambda: copy(value))
    return Argument(getattr(value, "__name__", None) or repr(value), lambda: value)


def configured_call(settings: Mapping[str, Any]) -> Call:
    """The call a user wrote down: `{"args": [...], "kwargs": {...}}`."""
    args, kwargs = settings.get("args", ()), settings.get("kwargs", {})
    return Call(tuple(map(constant, args)), {k: constant(v) for k, v in kwargs.items()}, "configured")


def calls(function: Callable[..., Any], scope: Scope) -> Iterator[Call]:
    """Ways to call `function`, most trusted first."""
    required = _required(function)
    if not required:
        yield Call((), {}, "defaults")
    if scope.tree is not None:
        yield from _calls_in(scope.tree, getattr(function, "__name__", ""), scope.module)
    if not required:
        return
    for alternative in range(3):
        try:
            kwargs = {p.name: _argument(p, function, scope, alternative) for p in required}
        except Unknown:
            return
        positional = [p.name for p in required if p.kind is p.POSITIONAL_ONLY]
        args = tuple(kwargs.pop(name) for name in positional)
        yield Call(args, kwargs, "inferred")
    yield from _with_sequences(required, function, scope)


def completed(call: Call, error: BaseException, function: Callable[..., Any], scope: Scope) -> Call | None:
    """`call` with the arguments that `error` says somebody misses to whom `function` hands on its `**kwargs`; None if
    it speaks of something else."""
    missing = MISSING.search(str(error)) if isinstance(error, TypeError) else None
    try:
        kinds = {parameter.kind for parameter in inspect.signature(function).parameters.values()}
    except (TypeError, ValueError):
        return None
    if missing is None or inspect.Parameter.VAR_KEYWORD not in kinds:
        return None
    names = re.findall(r"'(\w+)'", missing.group(1))
    try:
        more = {name: _by_name(name, scope, 0) for name in names if name not in call.kwargs}
    except Unknown:
        return None
    return Call(call.args, {**call.kwargs, **more}, "inferred") if more else None


def _with_sequences(
    required: Sequence[inspect.Parameter], function: Callable[..., Any], scope: Scope
) -> Iterator[Call]:
    """The inferred call with one integer, then all of them, replaced by a sequence (`layers=[2, 2, 2, 2]`)."""
    plain = {p.name: _argument(p, function, scope, 0) for p in required}
    sequences = {
        p.name: constant(list(_lookup(SEQUENCES, p.name, (32, 32))))
        for p in required
        if isinstance(plain[p.name].make(), int)
        and p.kind is not p.POSITIONAL_ONLY
        and re.search(r"s$|layers|blocks|dim|size|shape|hidden|feature", p.name)
    }
    for name, argument in sequences.items():
        yield Call((), {**plain, name: argument}, "inferred")
    if len(sequences) > 1:
        yield Call((), {**plain, **sequences}, "inferred")


def required_names(function: Callable[..., Any]) -> list[str]:
    """Names of the parameters that have no default."""
    return [parameter.name for parameter in _required(function)]


def _required(function: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p for p in parameters if p.default is p.empty and p.kind not in variadic]


# Calls that the file itself contains ---------------------------------------------------------------------------------


def _calls_in(tree: ast.Module, name: str, module: types.ModuleType) -> Iterator[Call]:
    """Calls of `name` in the file whose arguments are all constants."""
    seen = set()
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name):
            continue
        if any(isinstance(a, ast.Starred) for a in node.args) or any(k.arg is None for k in node.keywords):
            continue
        try:
            args = tuple(_evaluated(argument, module) for argument in node.args)
            kwargs = {str(k.arg): _evaluated(k.value, module) for k in node.keywords}
        except Unknown:
            continue
        call = Call(args, kwargs, "file")
        if str(call) not in seen and (args or kwargs):
            seen.add(str(call))
            yield call


def _evaluated(node: ast.expr, module: types.ModuleType) -> Argument:
    """The constant an expression stands for: a literal, or a name that the module binds to plain data or a class."""
    try:
        return constant(ast.literal_eval(node))
    except ValueError:
        pass
    if isinstance(node, ast.Call) and not node.args and not node.keywords:
        made = _evaluated(node.func, module)
        if isinstance(made.make(), type):
            return Argument(f"{made}()", made.make())
    value: Any = module
    for part in ast.unparse(node).split("."):
        if not part.isidentifier() or not hasattr(value, part):
            raise Unknown
        value = getattr(value, part)
    if isinstance(value, (bool, int, float, str, tuple, list, dict, type)) or value is None:
        return constant(value)
    raise Unknown


# Values by annotation and name ---------------------------------------------------------------------------------------


def _argument(parameter: inspect.Parameter, function: Callable[..., Any], scope: Scope, alternative: int) -> Argument:
    """A value for a parameter; raises Unknown. `alternative` (0, 1, 2) asks for another guess where there are some."""
    annotation = _annotation(parameter, function)
    by_type = _by_annotation(parameter.name, annotation, scope, alternative)
    return by_type if by_type is not None else _by_name(parameter.name, scope, alternative)


def _annotation(parameter: inspect.Parameter, function: Callable[..., Any]) -> Any:
    target = function.__init__ if isinstance(function, type) else function  # type: ignore[misc]
    try:
        hints = typing.get_type_hints(target)
    except Exception:  # annotations are arbitrary user expressions
        hints = {}
    annotation = hints.get(parameter.name, parameter.annotation)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        options = [option for option in typing.get_args(annotation) if option is not type(None)]
        return options[0] if options else parameter.empty
    return annotation


def _by_annotation(name: str, annotation: Any, scope: Scope, alternative: int) -> Argument | None:
    origin, parameters = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return constant(parameters[0])
    if origin in (list, tuple, set, Sequence) or annotation in (list, tuple):
        return _sequence(name, origin or annotation, parameters)
    if origin is type:
        return constant(_lookup(CLASSES, name, nn.Identity))
    if not isinstance(annotation, type) or annotation is inspect.Parameter.empty:
        return None
    if annotation is bool:
        return constant(False)
    if annotation is int:
        return constant(small_integer(name, alternative))
    if annotation is float:
        return constant(_lookup(FLOATS, name, 0.5))
    if annotation is str:
        return constant(_lookup(STRINGS, name, ""))
    if annotation is dict:
        return constant({})
    if issubclass(annotation, enum.Enum):
        return constant(next(iter(annotation)))
    if annotation is nn.Module:
        return _model(name, scope, alternative) if "layer" not in name else constant(nn.Identity())
    if issubclass(annotation, nn.Module) or dataclasses.is_dataclass(annotation) or CONFIG_NAME.match(name):
        return _object(annotation, scope, alternative)
    return None


def _sequence(name: str, kind: Any, parameters: tuple[Any, ...]) -> Argument:
    make = tuple if kind is tuple else list
    values = _lookup(SEQUENCES, name, (32, 32))
    if kind is tuple and parameters and ... not in parameters:
        values = (values * len(parameters))[: len(parameters)]
    if parameters and parameters[0] is str:
        raise Unknown
    if parameters and parameters[0] is float:
        return constant(make(0.1 for _ in values))
    return constant(make(values))


def _object(cls: type, scope: Scope, alternative: int) -> Argument:
    """An instance of a configuration or module class, its own required arguments inferred in turn."""
    arguments = {p.name: _argument(p, cls, scope, alternative) for p in _required(cls)}
    call = Call((), arguments, "inferred")
    return Argument(f"{cls.__name__}({call})", lambda: call.apply(cls))


def _by_name(name: str, scope: Scope, alternative: int) -> Argument:
    lowered = name.lower()
    if CONFIG_NAME.match(lowered):
        return _configuration(scope, alternative)
    if MODEL_NAME.match(lowered):
        return _model(name, scope, alternative)
    if re.search(r"^(act|activation|nonlinearity|act_fn|activation_fn|fn|func|f)$", lowered):
        if lowered[0] == "f":
            return Argument("Identity()", nn.Identity)
        return (Argument("ReLU()", nn.ReLU), constant(nn.ReLU), constant("relu"))[alternative]
    if re.search(r"norm_layer|act_layer|conv_layer|_layer$|_class$|_cls$", lowered):
        return constant(_lookup(CLASSES, lowered, nn.Identity))
    if lowered == "block":
        return _block(scope)
    if re.search(
        r"^(is|use|has|with|do|enable|return)_|bias$|bidirectional|batch_first|causal|pretrained|norm$|residual",
        lowered,
    ):
        return constant(False)
    value = _lookup(FLOATS, lowered, None) if not re.search(r"weight|scale|base|ratio|mult|model", lowered) else None
    return constant(value if value is not None else small_integer(lowered, alternative))


def _model(name: str, scope: Scope, alternative: int) -> Argument:
    """A model of the same file, first those whose name resembles the parameter's."""
    if not scope.models:
        raise Unknown
    alike = sorted(scope.models, key=lambda model: name.lower() not in str(model).partition("(")[0].lower())
    return alike[alternative % len(alike)]


def _block(scope: Scope) -> Argument:
    """A class of the same file whose name says that it is a block."""
    for cls in vars(scope.module).values():
        if isinstance(cls, type) and issubclass(cls, nn.Module) and cls.__name__.endswith("Block"):
            return constant(cls)
    raise Unknown


def _configuration(scope: Scope, alternative: int) -> Argument:
    """An instance of the file's only configuration class, else an object that invents each attribute asked for."""
    if alternative == 0:
        found = [
            cls
            for cls in vars(scope.module).values()
            if isinstance(cls, type)
            and re.search(r"(Config|Args|Params|Cfg|HParams|Settings|Options)$", cls.__name__)
            and not issubclass(cls, nn.Module)
        ]
        local = [cls for cls in found if cls.__module__ == scope.module.__name__]
        for cls in local or found:
            return _object(cls, scope, alternative)
        instances = [
            value
            for name, value in vars(scope.module).items()
            if CONFIG_NAME.match(name.lower()) and not callable(value)
        ]
        for value in instances:
            if isinstance(value, (dict, types.SimpleNamespace)):
                return constant(value)
    return _invented(InventedDict if alternative == 2 else Invented)


def _invented(kind: type[Invented] | type[InventedDict]) -> Argument:
    """A made-up configuration, printed with what was asked of it."""
    made: list[Invented | InventedDict] = []

    def make() -> Invented | InventedDict:
        made[:] = [kind()]
        return made[0]

    return Argument(lambda: repr(made[0]) if made else "…", make)


class Invented:
    """Stands in for a configuration: every attribute or key asked for gets a value that suits its name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            value = _by_name(name, Scope(types.ModuleType("none")), 0).make()
        except Unknown:
            raise AttributeError(name) from None
        setattr(self, name, value)
        return value

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str)

    def get(self, name: str, default: Any = None) -> Any:
        return default if default is not None else getattr(self, name)

    def __repr__(self) -> str:
        return "Config(" + ", ".join(f"{name}={value!r}" for name, value in vars(self).items()) + ")"


class InventedDict(dict[str, Any]):
    """The same for code that insists on a dictionary."""

    def __missing__(self, name: str) -> Any:
        try:
            self[name] = _by_name(name, Scope(types.ModuleType("none")), 0).make()
        except Unknown:
            raise KeyError(name) from None
        return self[name]


def small_integer(name: str, alternative: int = 0) -> int:
    """A small value for a size of this name; sizes so chosen fit each other."""
    value = _lookup(INTEGERS, name.lower(), 4)
    return value if alternative == 0 or value < 16 or value == 100 else value * 2**alternative


def _lookup(table: Sequence[tuple[str, T]], name: str, default: T) -> T:
    return next((value for pattern, value in table if re.search(pattern, name.lower())), default)
