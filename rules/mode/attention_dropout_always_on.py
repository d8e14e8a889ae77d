"""Attention dropout that `model.eval()` cannot switch off.

## What it finds
A call of `F.scaled_dot_product_attention`, of a flash-attention or xformers kernel, or of
`F.multi_head_attention_forward`, with a dropout rate above zero that nothing sets to zero in eval mode. The rate is
followed through variables, attributes (`self.drop.p`) and the parameters of helper functions. In a run: such a call
that got a rate above zero in eval mode.

## Why it matters
These functions know no mode: they drop whatever rate they are given, in evaluation as in training. Of 27 such calls
in 4.3 million lines of published code whose rate was neither 0 nor visibly gated, 10 were bugs: the model's answers
are random, and a little worse than they could be.

## Example
    class Attention(nn.Module):
        def __init__(self, dropout=0.1):
            super().__init__()
            self.dropout = dropout

        def forward(self, q, k, v):
            return F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout)

## Use instead
    class Attention(nn.Module):
        def __init__(self, dropout=0.1):
            super().__init__()
            self.dropout = dropout

        def forward(self, q, k, v):
            return F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)

## When to ignore it
Where dropout in evaluation is the purpose (Monte-Carlo dropout): say so in a comment or name.

## References
- https://pytorch.org/docs/stable/generated/torch.nn.functional.scaled_dot_product_attention.html ("applies dropout
  according to the value of the dropout_p argument … even in eval")
- https://github.com/Dao-AILab/flash-attention ("dropout_p should be set to 0.0 during evaluation")
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from auditor.finding import Finding, Note, Severity
from auditor.fix.claims import outputs, parameters, repeatable
from auditor.fix.edit import Edit, replace
from auditor.rule import Category, Rule, span
from auditor.static.facts.gating import Rate, follows_mode, is_meant, rate_in_eval, runs_in_eval, switched_off
from auditor.static.source import HIDDEN, Source

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture

rule = Rule(
    __name__,
    code="MOD005",
    category=Category.CORRECTNESS,
    severity=Severity.ERROR,
    summary="attention dropout that never switches off",
    triggers=("dropout_p", "scaled_dot_product_attention", "flash_attn", "memory_efficient_attention"),
)

F = "torch.nn.functional."
MULTI_HEAD = F + "multi_head_attention_forward"
MULTI_HEAD_TRAINING = 13  # where its `training` stands by position
# The rate's name and position.
KERNELS: dict[str, tuple[str, int]] = {
    F + "scaled_dot_product_attention": ("dropout_p", 4),
    "torch._C._nn.scaled_dot_product_attention": ("dropout_p", 4),
    MULTI_HEAD: ("dropout_p", 10),
    "xformers.ops.memory_efficient_attention": ("p", 4),
    "xformers.ops.fmha.memory_efficient_attention": ("p", 4),
}
FLASH = {"": 3, "qkvpacked_": 1, "kvpacked_": 2, "varlen_": 7, "varlen_qkvpacked_": 3, "varlen_kvpacked_": 6}
FLASH |= {name.replace("varlen", "unpadded"): position for name, position in FLASH.items() if "varlen" in name}
for _home in ("flash_attn.", "flash_attn.flash_attn_interface."):
    KERNELS |= {f"{_home}flash_attn_{name}func": ("dropout_p", position) for name, position in FLASH.items()}


@rule.static
def rate_never_zero(source: Source) -> Iterator[Finding]:
    """A call in a module that eval mode reaches with a rate above zero."""
    for call in source.calls_to(*KERNELS):
        rate, origins = _rate(source, call)
        if rate is Rate.ALWAYS and runs_in_eval(source, call) and not is_meant(source, call):
            passed = source.argument(call, *KERNELS[_name(source, call)])
            notes = [Note(span(item), "the rate comes from here") for item in origins if item is not passed]
            message = "attention knows no mode: this rate drops attention weights even after `model.eval()`"
            yield rule.finding(call, message, notes=notes)


@rule.dynamic
def drops_in_eval(capture: Capture) -> Iterator[Finding]:
    """A call of the eval run with a rate above zero."""
    from auditor.dynamic.intent import is_meant_at

    for node in capture.calls_to("eval", *KERNELS):
        rate = node.argument(*KERNELS[node.function], 0.0)
        if node.function == MULTI_HEAD and not node.argument("training", MULTI_HEAD_TRAINING, True):
            continue
        inside = capture.modules.get(node.module)
        of_torch = inside is not None and inside.kind.startswith("torch.nn.")  # a layer put in train mode on purpose
        if isinstance(rate, (int, float)) and rate > 0 and not of_torch and not is_meant_at(node.location):
            where = f"`{node.module}`" if node.module else "the model"
            message = f"{where} drops {rate:.0%} of its attention weights in eval mode"
            yield rule.finding(node, message, modules=[node.module], rate=rate)


@rule.fix(
    "set the rate to 0 in eval mode", keeps=[parameters(), outputs(mode="train")], gains=[repeatable(mode="eval")]
)
def follow_the_module(source: Source, finding: Finding) -> list[Edit] | None:
    for call in source.calls_to(*KERNELS):
        row = finding.location.row
        if call.lineno <= row <= (call.end_lineno or row) and _rate(source, call)[0] is Rate.ALWAYS:
            codes = [(origin, switched_off(source, origin)) for origin in _rate(source, call)[1]]
            return [replace(origin, code) for origin, code in codes if code] if all(code for _, code in codes) else None
    return None


def _name(source: Source, call: ast.Call) -> str:
    return min(source.resolve(call.func))


def _rate(source: Source, call: ast.Call) -> tuple[Rate, tuple[ast.expr, ...]]:
    """What the call's rate is in eval mode, and the expressions it comes from."""
    name = _name(source, call)
    rate = source.argument(call, *KERNELS[name])
    if rate is None or rate is HIDDEN:
        return Rate.UNKNOWN, ()
    if name == MULTI_HEAD:
        switch = source.argument(call, "training", MULTI_HEAD_TRAINING)
        if switch is HIDDEN or (
            switch is not None and (follows_mode(source, switch) or source.constant(switch) is not True)
        ):
            return Rate.FOLLOWS, ()
    return rate_in_eval(source, rate)
