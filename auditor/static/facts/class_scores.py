"""Which dropouts act on class scores: behind the last layer with weights, before a loss or the softmax of a model."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.static.facts.dropouts import Dropout, before, behind, dropouts, name_of, role
from auditor.static.facts.endings import Ending, applications
from auditor.static.facts.values import held, producers
from auditor.static.flow import Op
from auditor.static.layers import DROPOUTS

if TYPE_CHECKING:
    from auditor.static.source import Source

FUNCTIONS = ("torch.nn.functional.cross_entropy", "torch.nn.functional.nll_loss")
LAYERS = ("torch.nn.CrossEntropyLoss", "torch.nn.NLLLoss")
DROPPED = Ending(functions=frozenset({"torch.nn.functional.dropout", "torch.dropout"}), layers=frozenset(DROPOUTS))
# Names of layers and models that classify, and of those that weigh or route instead of classifying.
WEIGHS = re.compile(r"atten|attn|gate|gating|rout|mix|moe|weight|select|polic", re.IGNORECASE)
CLASSIFIES = re.compile(r"classif|logit|head|^out|net$|model$|predict|tagger|^fc|cls|discrimin", re.IGNORECASE)


def dropped_scores(source: Source) -> Iterator[Dropout]:
    """The dropouts every use of which acts on class scores."""
    lossy = _given_to_losses(source)
    for dropout in dropouts(source):
        scored = all(_is_scored(source, op) for op in dropout.uses) or dropout.call in lossy
        if scored and all(_is_behind_weights(op) for op in dropout.uses) and not _weighs(source, dropout):
            yield dropout


def _is_behind_weights(op: Op) -> bool:
    producer = before(op, "shape")
    return producer is not None and role(producer) in ("linear", "conv")


def _is_scored(source: Source, op: Op) -> bool:
    user = behind(op, "shape")
    if user is None:
        return False
    if (user.kind == "call" and user.target in FUNCTIONS) or user.layer_kind in LAYERS:
        return True
    if role(user) != "softmax":
        return False
    alone = user.layer is not None and user.node is user.layer and not user.users  # ends a Sequential of its own
    following = behind(user, "shape")
    last = alone or (following is not None and following.kind == "output")
    return last and ("log" in name_of(user).lower() or _is_classifier(source, op))


def _is_classifier(source: Source, op: Op) -> bool:
    """Whether the layer before or the class around says so; a softmax alone also makes weights."""
    producer = before(op, "shape")
    owner = source.class_of(op.node)
    names = [producer.target if producer is not None else "", owner.name if owner is not None else ""]
    return any(CLASSIFIES.search(name) for name in names)


def _weighs(source: Source, dropout: Dropout) -> bool:
    owner = source.class_of(dropout.call)
    layers = [before(op, "shape") for op in dropout.uses]
    names = [owner.name if owner is not None else "", *(layer.target for layer in layers if layer is not None)]
    return any(WEIGHS.search(name) for name in names)


def _given_to_losses(source: Source) -> set[ast.Call]:
    """The dropouts that end what is given to a classifier's loss, as constructions or calls."""
    found: set[ast.Call] = set()
    if not source.calls_to(*FUNCTIONS, *LAYERS):
        return found
    for loss in source.tree.all(ast.Call):
        made = held(source, loss.func) if len(loss.args) >= 2 and not source.resolve(loss.func) else []
        if source.is_any(loss.func, *FUNCTIONS) or (made and all(source.is_any(item.func, *LAYERS) for item in made)):
            given = loss.args[0] if loss.args else source.argument(loss, "input")
            calls = producers(source, given) if isinstance(given, ast.expr) else []
            parts = [applications(source, call, DROPPED) for call in calls]
            for call in [call for part in parts for call in part] if all(parts) else []:
                constructed = [item for item in held(source, call.func) if source.layer_kind(item) in DROPOUTS]
                found.update(constructed or [call])
    return found
