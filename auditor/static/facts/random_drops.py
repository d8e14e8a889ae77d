"""Random dropping written by hand that runs in eval mode too: of layers by a condition, of values by a mask."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from auditor.static.facts.gating import follows_mode, gated, is_meant, runs_in_eval
from auditor.static.facts.masks import masks

if TYPE_CHECKING:
    from auditor.static.source import Function, Source

# Names that say dropping of layers or activations, and those that say that something else is dropped or drawn.
_DROPS = re.compile(r"drop|surviv|stochastic_?depth|skip_?prob|layer_?skip", re.IGNORECASE)
_OTHER = re.compile(
    r"mask|augment|nois[ey]|corrupt|perturb|eras|cutout|token|word|label|class(?!ifier)|cond|guid|cfg|edge|node|graph"
    r"|modal|caption|text|prompt|frame|spec|sampl|data|transform|collat|frequency|chunk|speed|path_?length|prune|random"
    r"|teacher|backdrop|droplet|dropdown",
    re.IGNORECASE,
)
_DRAWS = ("torch.rand", "random.random", "numpy.random.rand", "numpy.random.random", "numpy.random.uniform",
          "random.uniform", "torch.bernoulli")  # fmt: skip


class RandomDrop(NamedTuple):
    """`draw`: the call that draws. `condition`: the test of an `if` that it decides, None for a mask."""

    function: Function
    draw: ast.Call
    condition: ast.expr | None


def says_drop(names: Iterable[str]) -> bool:
    """Whether names around some code say that it drops layers or activations, and none that it does something else."""
    names = list(names)
    return any(_DROPS.search(name) for name in names) and not any(_OTHER.search(name) for name in names)


def random_drops(source: Source) -> Iterator[RandomDrop]:
    """Draws that eval mode reaches, whose names say dropping, and that nothing ties to the mode."""
    for mask in masks(source):
        found = RandomDrop(mask.function, mask.draw, None)
        if _is_open(source, found, [mask.keep, mask.product]):
            yield found
    for draw in source.calls_to(*_DRAWS):
        function = source.function_of(draw)
        test = _condition(source, draw)
        if function is not None and test is not None:
            found = RandomDrop(function, draw, test)
            if _is_open(source, found, [ast.unparse(test), test]):
                yield found


def _condition(source: Source, draw: ast.Call) -> ast.expr | None:
    """The test of the `if` in which a draw is compared: `if torch.rand(1).item() < self.p`."""
    below: ast.AST = draw
    compared = False
    for above in source.tree.ancestors(draw):
        compared = compared or isinstance(above, ast.Compare)
        if isinstance(above, (ast.If, ast.IfExp)) and below is above.test:
            return above.test if compared else None
        if not isinstance(above, (ast.Compare, ast.BoolOp, ast.UnaryOp, ast.Attribute, ast.Call)):
            return None
        below = above
    return None


def _is_open(source: Source, drop: RandomDrop, said: list[str | ast.AST]) -> bool:
    owner = source.class_of(drop.function)
    names = [drop.function.name, owner.name if owner is not None else ""]
    names += [item for item in said if isinstance(item, str)]
    places = [item for item in said if isinstance(item, ast.AST)]
    if not says_drop(names) or is_meant(source, drop.draw) or not runs_in_eval(source, drop.draw):
        return False
    return not any(gated(source, place) or follows_mode(source, place) for place in (drop.draw, *places))
