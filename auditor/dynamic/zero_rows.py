"""What a hand-written norm makes of a sample of zeros."""

from __future__ import annotations

import copy

import torch

from auditor.dynamic.capture import Capture, ModuleFacts, NodeFacts
from auditor.dynamic.state import preserved

_REDUCES = frozenset({"mean", "var", "std", "sum", "norm", "vector_norm", "var_mean", "std_mean"})
_DIVIDES = frozenset({"div", "truediv", "rsqrt", "true_divide", "divide"})


def dividing_call(capture: Capture, facts: ModuleFacts) -> NodeFacts | None:
    """The last division (or `rsqrt`) of a layer of the user's own that also reduces; None if it has none."""
    if facts.kind.startswith("torch.") or any(True for _ in facts.module.children()):
        return None
    calls = [node for node in capture.nodes("train") if node.module == facts.path]
    if not any(node.operation in _REDUCES for node in calls):
        return None
    return next((node for node in reversed(calls) if node.operation in _DIVIDES and node.location.path), None)


def spoiled_by_zeros(capture: Capture, facts: ModuleFacts) -> str:
    """What a sample of zeros makes NaN or infinite ("outputs" or "gradients") in a layer whose output does not depend
    on the scale of its input, as a norm's; "" where all is finite or the layer is none. The layer is left as it is."""
    shape = facts.in_shape.get("train")
    if not shape or len(shape) < 2 or shape[0] < 2:
        return ""
    dtype = getattr(torch, capture.dtype)
    generator = torch.Generator().manual_seed(0)
    plain = torch.randn(shape, generator=generator).to(capture.device, dtype)
    zeros = plain.clone()
    zeros[0] = 0
    try:
        with preserved(facts.module):
            clone = copy.deepcopy(facts.module).train()
            first, gradient = _run(clone, plain)
            scaled, _ = _run(clone, 4 * plain)
            out, zero_gradient = _run(clone, zeros)
    except Exception:  # it takes other inputs than one tensor of this shape
        return ""
    if not (_finite(first) and _finite(gradient)) or not torch.allclose(first, scaled, rtol=1e-2, atol=1e-2):
        return ""
    return "outputs" if not _finite(out) else "" if _finite(zero_gradient) else "gradients"


def _run(module: torch.nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        out = module(x)
        (gradient,) = torch.autograd.grad(out.square().sum(), x)
    return out.detach(), gradient


def _finite(x: torch.Tensor) -> bool:
    return bool(x.isfinite().all())
