"""Functions that torch is to remove, and whose successors are not the same.

## What it finds
Uses of `torch.nn.utils.weight_norm`, `torch.backends.cuda.sdp_kernel`, `torch.testing.assert_allclose`,
`torch.set_default_tensor_type`, functorch's `make_functional`, torchvision's `v2.ToTensor` and others that are
deprecated and whose successor differs in its arguments, its tolerances or the names of the parameters.

## Why it matters
They warn today and go away. The step to the successor needs a decision, which is easier before it has to be taken in a
hurry.

## Example
    def check(a, b):
        torch.testing.assert_allclose(a, b)

## Use instead
    def check(a, b):
        torch.testing.assert_close(a, b)

## When to ignore it
Where checkpoints hold parameters under the old names (`weight_norm`), until they are converted.

## References
- https://pytorch.org/docs/stable/generated/torch.nn.utils.parametrizations.weight_norm.html
- https://github.com/pytorch/pytorch/issues/61844 (`assert_allclose`)
- https://pytorch.org/docs/stable/generated/torch.nn.attention.sdpa_kernel.html
"""

from __future__ import annotations

from collections.abc import Iterator

from auditor.finding import Finding, Severity
from auditor.rule import Category, Rule
from auditor.static.facts.api import guarded, uses
from auditor.static.source import Source

rule = Rule(
    __name__,
    code="API018",
    category=Category.ROBUSTNESS,
    severity=Severity.INFO,
    summary="functions that torch is to remove and whose successors are not the same",
    triggers=(
        "weight_norm", "sdp_kernel", "assert_allclose", "set_default_tensor_type", "make_functional",
        "combine_state_for_ensemble", "ToTensor", "export_memory_timeline", "apply_permutation",
    ),
    since="2.3",
)  # fmt: skip

# Deprecated name → what to do instead.
ADVICE = {
    "torch.nn.utils.weight_norm": "`torch.nn.utils.parametrizations.weight_norm` names the parameters differently",
    "torch.nn.utils.remove_weight_norm": "`parametrize.remove_parametrizations` undoes the new `weight_norm`",
    "torch.backends.cuda.sdp_kernel": "`torch.nn.attention.sdpa_kernel` takes a list of backends",
    "torch.testing.assert_allclose": "`assert_close` has tighter tolerances and compares dtypes",
    "torch.set_default_tensor_type": "`set_default_dtype` and `set_default_device` say the two halves of it",
    "functorch.make_functional": "`torch.func.functional_call` takes the module and its parameters",
    "functorch.make_functional_with_buffers": "`torch.func.functional_call` takes the module, parameters and buffers",
    "functorch.combine_state_for_ensemble": "`torch.func.stack_module_state` stacks parameters and buffers",
    "torchvision.transforms.v2.ToTensor": "`ToImage` and `ToDtype(torch.float32, scale=True)` say the two halves of it",
    "torch.nn.modules.rnn.apply_permutation": "`tensor.index_select(dim, permutation)` is what it does",
}


@rule.static
def deprecated(source: Source) -> Iterator[Finding]:
    for use, name in uses(source, ADVICE):
        if not guarded(source, use):
            yield rule.finding(use, f"`{name}` is deprecated: {ADVICE[name]}")
