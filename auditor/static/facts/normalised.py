"""Which convolutions and linear layers feed nothing but a norm that subtracts the mean of each of their channels."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from auditor.finding import Note
from auditor.rule import span
from auditor.static.constants import enclosing_scope
from auditor.static.flow import Op, children
from auditor.static.layers import BATCH_NORMS, CONVS, INSTANCE_NORMS, NN

if TYPE_CHECKING:
    from auditor.static.classes import ModuleClass
    from auditor.static.source import Source

# The file folds, quantises or freezes norms: there the bias may be needed.
_SPECIAL = (
    r"(?i)norm_eval|bn_eval|(freeze|frozen|fix)_?(all_)?(bn|batch_?norm|norm)|FrozenBatchNorm|fuse_modules|QuantStub"
    r"|ao\.quantization|torch\.quantization|def \w*(fuse|deploy|reparam)\w*\("
)
_SETS_UP = {"__init__", "reset_parameters", "_reset_parameters", "init_weights", "_init_weights", "initialize"}


class Followed(NamedTuple):
    """A layer with the norm that takes its output. Both are constructions in the file."""

    layer: ast.Call
    kind: str
    norm: ast.Call
    norm_kind: str

    def note(self) -> Note:
        return Note(span(self.norm), "the norm that subtracts it")

    def bias_is_touched(self, source: Source) -> bool:
        """Whether the file uses the bias of some layer without asking whether there is one."""
        for node in source.tree.attributes("bias"):
            if isinstance(node.value, ast.Name) and node.value.id == "self":
                continue
            function = source.function_of(node)
            around = ast.unparse(function) if function is not None else source.text
            if not re.search(r"bias is (not )?None|if [\w.]+\.bias\b|hasattr\(\w+, 'bias'\)", around):
                return True
        return False


def bias_position(kind: str) -> int:
    """Where `bias` stands when it is passed by position to a linear layer or convolution of this kind."""
    full = 2 if kind.endswith("Linear") else 7
    return full - 1 if "Lazy" in kind else full


def is_plain_bias(bias: object) -> bool:
    """Whether the argument is left to its default or written `True`: anything else is somebody's choice."""
    return bias is None or (isinstance(bias, ast.Constant) and bias.value is True)


def followed_by_norm(source: Source) -> Iterator[Followed]:
    """Every such pair, each layer once, in document order; layers with any other use are left out."""
    norms = source.calls_to(*_NORMS)
    if not norms or re.search(_SPECIAL, source.text):
        return
    found: dict[ast.Call, Followed] = {}
    refused: set[ast.Call] = set()
    for chain in _chains(source):
        _collect(source, chain, found, refused)
    for facts, flow in source.flows_meeting(norms):
        if "train" in facts.methods:
            continue
        for op in flow.layer_ops():
            if op.layer is None or op.layer_kind not in _LAYERS:
                continue
            norm = _only_norm(source, facts, op)
            pair = _pair(source, op.layer, norm.layer) if norm is not None and norm.layer is not None else None
            if pair is not None:
                found.setdefault(op.layer, pair)
            else:
                refused.add(op.layer)
    yield from sorted((pair for layer, pair in found.items() if layer not in refused), key=_position)


_NORMS = BATCH_NORMS | INSTANCE_NORMS | {NN + "GroupNorm"}
_LAYERS = CONVS | {NN + "Linear", NN + "LazyLinear"}


def _position(pair: Followed) -> tuple[int, int]:
    return pair.layer.lineno, pair.layer.col_offset


# Chains of a Sequential -----------------------------------------------------------------------------------------------


def _chains(source: Source) -> Iterator[list[ast.Call]]:
    """The layers of every Sequential that is only ever called as a whole, in order."""
    for call in source.calls_to("torch.nn.Sequential"):
        if _is_opaque(source, call):
            yield children(source, call)
    for call in source.calls_named("__init__"):
        owner = source.class_of(call)
        facts = source.module_class(owner) if owner is not None else None
        if facts is not None and facts.bases == [{"torch.nn.Sequential"}] and facts.method("forward") is None:
            layers = [argument for argument in call.args if isinstance(argument, ast.Call)]
            yield layers if len(layers) == len(call.args) else []


def _is_opaque(source: Source, call: ast.Call) -> bool:
    """Whether nobody is seen to look inside: the attribute it is held in is only called."""
    statement = source.statement_of(call)
    facts = source.module_class(owner) if (owner := source.class_of(call)) is not None else None
    if not isinstance(statement, ast.Assign) or facts is None:
        return not isinstance(statement, ast.Assign) or isinstance(statement.targets[0], ast.Name)
    target = statement.targets[0]
    if isinstance(target, ast.Attribute):
        return "train" not in facts.methods and _only_called(source, facts, target.attr)
    return isinstance(target, ast.Name)


def _collect(
    source: Source, chain: Sequence[ast.Call], found: dict[ast.Call, Followed], refused: set[ast.Call]
) -> None:
    for index, layer in enumerate(chain):
        if source.layer_kind(layer) in _LAYERS:
            pair = _pair(source, layer, chain[index + 1]) if index + 1 < len(chain) else None
            if pair is not None:
                found.setdefault(layer, pair)
            else:
                refused.add(layer)


# Layers called in a forward -------------------------------------------------------------------------------------------


def _only_norm(source: Source, facts: ModuleClass, op: Op) -> Op | None:
    """The norm that is the only user of `op`, both being held in attributes that are only called."""
    user = op.only_user()
    if user is None or user.kind != "layer" or user.layer is None or user.only_producer() is not op:
        return None
    names = {op.target, user.target} - {""}
    if len(user.producers) != 1 or not all(_only_called(source, facts, name) for name in names):
        return None
    return None if any(_replaced(source, facts, name) for name in names) else user


def _only_called(source: Source, facts: ModuleClass, attribute: str) -> bool:
    """Whether the class and its subclasses in the file use `self.<attribute>` as a function only.

    While setting up, they may also touch its weight.
    """
    related = [
        other
        for other in source.module_classes
        if other is facts or facts in other.ancestors or other in facts.ancestors
    ]
    methods: dict[ast.AST | None, str] = {method: name for family in related for name, method in family.methods.items()}
    for node in source.once(_own_attributes).get(attribute, ()):
        name = methods.get(enclosing_scope(source, node))
        parent = source.tree.parent(node)
        called = isinstance(parent, ast.Call) and parent.func is node
        weight = name in _SETS_UP and isinstance(parent, ast.Attribute) and parent.attr == "weight"
        if name is not None and not (called or weight):
            return False
    return True


def _own_attributes(source: Source) -> dict[str, list[ast.Attribute]]:
    """The places of the file where `self.<name>` is read, by name."""
    found: dict[str, list[ast.Attribute]] = {}
    for node in source.tree.all(ast.Attribute):
        if isinstance(node.value, ast.Name) and node.value.id == "self" and isinstance(node.ctx, ast.Load):
            found.setdefault(node.attr, []).append(node)
    return found


def _replaced(source: Source, facts: ModuleClass, attribute: str) -> bool:
    """Whether a subclass in the file puts something else in place of the attribute."""
    return any(attribute in other.own_attributes for other in source.module_classes if facts in other.ancestors)


# Pairs ----------------------------------------------------------------------------------------------------------------


def _pair(source: Source, layer: ast.Call, norm: ast.Call) -> Followed | None:
    kind, norm_kind = source.layer_kind(layer), source.layer_kind(norm)
    return Followed(layer, kind, norm, norm_kind) if _cancels(source, layer, kind, norm, norm_kind) else None


def _cancels(source: Source, layer: ast.Call, kind: str, norm: ast.Call, norm_kind: str) -> bool:
    """Whether the norm subtracts the mean of each channel (feature) that the bias shifts."""
    if norm_kind == NN + "GroupNorm":
        groups, channels = source.argument(norm, "num_groups", 0), source.argument(norm, "num_channels", 1)
        return kind in CONVS and _same(source, groups, channels)
    if norm_kind not in BATCH_NORMS | INSTANCE_NORMS:
        return False
    if kind in CONVS:
        return norm_kind.endswith(("SyncBatchNorm", kind[-2:]))
    # Behind a linear layer on (N, L, C), BatchNorm1d may normalise the positions: their number is another.
    features = source.argument(layer, "out_features", 0 if "Lazy" in kind else 1)
    return norm_kind == NN + "BatchNorm1d" and _same(source, features, source.argument(norm, "num_features", 0))


def _same(source: Source, left: object, right: object) -> bool:
    """Whether two arguments are surely the same number."""
    if not isinstance(left, ast.expr) or not isinstance(right, ast.expr):
        return False
    value = source.constant(left)
    if isinstance(value, int) and value == source.constant(right):
        return True
    return ast.dump(left) == ast.dump(right)
