"""Fixes that are right and fixes that are subtly wrong: every wrong one must be refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from auditor.dynamic.capture import LiveInputs
from auditor.dynamic.state import RandomState
from auditor.fix import claims as c
from auditor.fix import compare, measure
from auditor.fix.certificate import verdict
from auditor.fix.claims import Claim
from auditor.fix.validate import ClaimResult, Subject, validate

torch.set_num_threads(1)
WIDTH = 16


def check(
    before: Callable[[], nn.Module],
    after: Callable[[], nn.Module],
    claims: Sequence[Claim],
    shape: tuple[int, ...] = (8, WIDTH),
    moved: Mapping[str, str] | None = None,
    dtype: str = "float32",
) -> list[ClaimResult]:
    inputs = LiveInputs((torch.randn(shape, generator=torch.Generator().manual_seed(0)),))
    old, new = (Subject(lambda seed, make=make: make(), inputs, dtype=dtype) for make in (before, after))
    return validate(old, new, claims, moved=moved)


# Models --------------------------------------------------------------------------------------------------------------


class Rms(nn.Module):
    """Root-mean-square norms in variants: what a careless rewrite gets wrong."""

    def __init__(
        self, eps=1e-6, axis=-1, outside=False, affine=True, plus=0.0, centre=False, cast=False, name="weight"
    ):
        super().__init__()
        self.eps, self.axis, self.outside, self.affine, self.plus = eps, axis, outside, affine, plus
        self.centre, self.cast, self.name = centre, cast, name
        self.register_parameter(name, nn.Parameter(torch.ones(WIDTH)) if affine else None)

    def forward(self, x):
        given = x.dtype
        x = x.float() if self.cast else x
        x = x - x.mean(-1, keepdim=True) if self.centre else x
        mean = x.square().mean(self.axis, keepdim=True)
        x = x / (mean.sqrt() + self.eps) if self.outside else x * torch.rsqrt(mean + self.eps)
        scale = getattr(self, self.name)
        return (x if scale is None else x * (scale + self.plus)).to(given)


class Layer(nn.Module):
    def __init__(self, unbiased=False, bias=True, eps=1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))
        self.bias = nn.Parameter(torch.zeros(WIDTH))
        self.unbiased, self.eps, self.shifted = unbiased, eps, bias

    def forward(self, x):
        centred = x - x.mean(-1, keepdim=True)
        out = centred / (x.var(-1, keepdim=True, unbiased=self.unbiased) + self.eps).sqrt() * self.weight
        return out + self.bias if self.shifted else out


def shifted() -> nn.Module:
    """Dropout before BatchNorm: train and eval differ in the variance that the norm sees."""
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.5), nn.BatchNorm1d(WIDTH))


class Dropping(nn.Module):
    def __init__(self, mode="gated", p=0.5, twice=False):
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, 32), nn.Linear(32, 4)
        self.mode, self.p, self.twice = mode, p, twice

    def drop(self, h):
        if self.mode == "always":
            return F.dropout(h, self.p)
        if self.mode == "gated":
            return F.dropout(h, self.p, training=self.training)
        if self.mode == "never":
            return h
        if not self.training:
            return h * (1 - self.p) if self.mode == "at eval" else h
        keep = (torch.rand_like(h) > self.p).to(h.dtype)
        if self.mode == "per batch":
            keep = keep[:1]
        scale = {"unscaled": 1.0, "at eval": 1.0, "inverted": 1 / (1 - self.p), "per batch": 1 / (1 - self.p)}
        return h * keep * scale.get(self.mode, 1 - self.p)

    def forward(self, x):
        h = self.drop(self.first(x).relu())
        return self.second(self.drop(h) if self.twice else h)


class Stack(nn.Module):
    def __init__(self, kind="list", norm=False):
        super().__init__()
        layers = [nn.Linear(WIDTH, WIDTH) for _ in range(3)]
        if norm:
            layers[1] = nn.BatchNorm1d(WIDTH)
        if kind == "part":
            self.kept = nn.ModuleList(layers[:0])
        self.layers = {"list": list, "part": list, "module list": nn.ModuleList, "reversed": reversed_list}[kind](
            layers
        )
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).tanh()
        return self.head(x)


def reversed_list(layers):
    return nn.ModuleList(layers[::-1])


class Mlp(nn.Module):
    def __init__(self, init=None, dropout=None, end=None, norm=None, p=0.5, act=F.relu):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(WIDTH, 64), nn.Linear(64, 64), nn.Linear(64, 4)
        self.norm = norm(64) if norm else nn.Identity()
        self.drop = dropout(p) if dropout else nn.Identity()
        self.end = end() if end else nn.Identity()
        self.act = act
        if init:
            for layer in (self.a, self.b, self.head):
                init(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, x):
        x = self.act(self.norm(self.a(x)))
        return self.end(self.head(self.drop(self.act(self.b(x)))))


class Convolution(nn.Module):
    def __init__(self, norm=nn.BatchNorm2d, bias=True, drop=nn.Dropout, p=0.5, single=False):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=bias)
        self.norm = norm(8)
        self.drop = drop(p)
        self.head = nn.Linear(8, 4)
        self.single = single

    def forward(self, x):
        x = self.conv(x)
        x = self.norm(x.mean((2, 3), keepdim=True) if self.single else x)
        return self.head(self.drop(x.relu()).mean((2, 3)))


class Frozen(nn.Module):
    def __init__(self, keep=False, momentum=0.1):
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH, momentum=momentum)
        self.head = nn.Linear(WIDTH, 2)
        self.keep = keep

    def train(self, mode=True):
        super().train(mode)
        if self.keep:
            self.norm.eval()
        return self

    def forward(self, x):
        return self.head(self.norm(x))


class Log(nn.Module):
    def __init__(self, kind="log softmax"):
        super().__init__()
        self.kind = kind

    def forward(self, x):
        if self.kind == "log of softmax":
            return x.softmax(-1).log()
        if self.kind == "twice":
            return x.softmax(-1).log_softmax(-1)
        if self.kind == "log2":
            return x.log_softmax(-1) / torch.tensor(2.0).log()
        return x.log_softmax(0 if self.kind == "wrong axis" else -1)


class Mixing(nn.Module):
    def __init__(self, dim=0):
        super().__init__()
        self.gate, self.head, self.dim = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2), dim

    def forward(self, x):
        return self.head(x * self.gate(x).softmax(self.dim))


class Empty(nn.Module):
    def __init__(self, init=None):
        super().__init__()
        self.scale = nn.Parameter(torch.empty(WIDTH))
        if init:
            init(self.scale)

    def forward(self, x):
        return x * self.scale


class HalfRms(nn.Module):
    def __init__(self, cast=False, eps=1e-6, outside=True):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))
        self.cast, self.eps, self.outside = cast, eps, outside

    def forward(self, x):
        wide = x.float() if self.cast else x
        mean = wide.square().mean(-1, keepdim=True)
        root = mean.sqrt() + self.eps if self.outside else (mean + self.eps).sqrt()
        return (wide / root).to(x.dtype) * self.weight


class Broken(nn.Module):
    def __init__(self, size=WIDTH):
        super().__init__()
        self.layer = nn.Linear(size, 2)

    def forward(self, x):
        return self.layer(x)


class Output(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.layer, self.make = nn.Linear(WIDTH, 4), make

    def forward(self, x):
        return self.make(self.layer(x))


@dataclass
class Result:
    logits: torch.Tensor
    extra: dict[str, torch.Tensor] = field(default_factory=dict)


# Pairs ---------------------------------------------------------------------------------------------------------------

SAME = [c.parameters(), c.state_dict_keys(), c.outputs(), c.gradients()]
EQUAL = [c.outputs(), c.gradients()]
GATE = [c.parameters(), c.outputs("train"), c.repeatable()]
LIST = [c.parameters(added=True), c.outputs(), c.registered()]
ALIVE = [c.alive(), c.symmetry_broken(idempotent=True), c.head_rms(0.05, 10)]
BATCH_ONE = [c.trains_at_batch_one(), c.shapes()]
IMAGE = (8, 3, 4, 4)
FINE_ROWS = ("given", "normal", "small", "offset", "zero")


def xavier(weight: torch.Tensor) -> None:
    nn.init.xavier_uniform_(weight)


def tiny(weight: torch.Tensor) -> None:
    nn.init.normal_(weight, std=1e-4)


def huge(weight: torch.Tensor) -> None:
    nn.init.normal_(weight, std=30)


def constant(weight: torch.Tensor) -> None:
    nn.init.constant_(weight, 0.1)


def group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(2, channels)


def rms_norm(eps: float = 1e-6) -> nn.Module:
    return nn.RMSNorm(WIDTH, eps=eps)


@dataclass(frozen=True)
class Case:
    name: str
    before: Callable[[], nn.Module]
    after: Callable[[], nn.Module]
    claims: Sequence[Claim]
    shape: tuple[int, ...] = (8, WIDTH)
    moved: Mapping[str, str] | None = None


RIGHT = [
    Case("rms to built-in", Rms, rms_norm, SAME),
    Case("rms with upcast to built-in", lambda: Rms(cast=True), rms_norm, SAME),
    Case("rms, parameter renamed and mapped", lambda: Rms(name="g"), rms_norm, SAME, moved={"g": "weight"}),
    Case("rms on sequences", Rms, rms_norm, SAME, (4, 5, WIDTH)),
    Case("layer norm to built-in", Layer, lambda: nn.LayerNorm(WIDTH), SAME),
    Case("gated dropout", lambda: Dropping("always"), Dropping, GATE),
    Case("scaled mask", lambda: Dropping("unscaled"), lambda: Dropping("inverted"), [c.parameters(), c.expectation()]),
    Case("mask scaled at eval", lambda: Dropping("unscaled"), lambda: Dropping("at eval"), [c.expectation()]),
    Case("mask to dropout", lambda: Dropping("inverted"), Dropping, [c.outputs(), c.distribution()]),
    Case("stacked to one", lambda: Dropping(twice=True), lambda: Dropping(p=0.75), [c.outputs(), c.distribution()]),
    Case("less dropout", lambda: Dropping(p=0.9), lambda: Dropping(p=0.3), [c.outputs(), c.train_eval_gap()]),
    Case("module list", Stack, lambda: Stack("module list"), LIST),
    Case("module list with norm", lambda: Stack(norm=True), lambda: Stack("module list", True), LIST[:1] + LIST[2:]),
    Case("zero init", lambda: Mlp(nn.init.zeros_), lambda: Mlp(xavier), ALIVE),
    Case("tiny init", lambda: Mlp(tiny), lambda: Mlp(nn.init.kaiming_normal_), [c.head_rms()]),
    Case("training", lambda: Mlp(nn.init.zeros_), lambda: Mlp(nn.init.kaiming_normal_), [c.trains()]),
    Case("huge init", lambda: Mlp(huge), lambda: Mlp(xavier), [c.initial_loss(), c.parameters(values=False)]),
    Case("group norm", Convolution, lambda: Convolution(group_norm), BATCH_ONE, IMAGE),
    Case("one value per channel", lambda: Convolution(single=True), lambda: Convolution(group_norm, single=True),
         BATCH_ONE, IMAGE),
    Case("spatial dropout", Convolution, lambda: Convolution(drop=nn.Dropout2d), SAME[:3], IMAGE),
    Case("dead norm", lambda: Convolution(lambda n: nn.GroupNorm(n, n), single=True),
         lambda: Convolution(group_norm, single=True), [c.depends_on_input(), c.state_dict_keys()], IMAGE),
    Case("frozen statistics", Frozen, lambda: Frozen(True), [c.outputs(), c.statistics_untouched()]),
    Case("momentum", lambda: Frozen(momentum=0.99), lambda: Frozen(momentum=0.01 + 0.05), [c.statistics_error()],
         (64, WIDTH)),
    Case("log softmax", lambda: Log("log of softmax"), Log, [c.outputs(rows=FINE_ROWS), c.gradients(rows=FINE_ROWS)]),
    Case("no softmax", lambda: Mlp(end=lambda: nn.Softmax(-1)), Mlp, [c.parameters(), c.ranking(), c.loss_floor()]),
    Case("no dropout on logits", lambda: Mlp(end=nn.Dropout), Mlp, [c.outputs(), c.loss_floor()]),
    Case("evaluation with dropout", lambda: Mlp(dropout=nn.Dropout), lambda: Mlp(dropout=nn.Dropout), [c.evaluation()]),
    Case("evaluation with batch norm", Convolution, Convolution, [c.evaluation()], IMAGE),
    Case("samples apart", Mixing, lambda: Mixing(-1), [c.parameters(), c.samples_independent()]),
    Case("initialised", Empty, lambda: Empty(nn.init.ones_), [c.deterministic_construction(), c.state_dict_keys()]),
    Case("finite in half", lambda: HalfRms(eps=1e-8), lambda: HalfRms(True, 1e-6, False), [c.finite()]),
    Case("alpha dropout", lambda: Mlp(dropout=nn.Dropout, act=F.selu), lambda: Mlp(dropout=nn.AlphaDropout, act=F.selu),
         [c.outputs(), c.unit_variance()]),
    Case("right size", lambda: Broken(5), Broken, [c.runs("eval")]),
    Case("cloned layers", lambda: Cloned(), lambda: Cloned(False), [c.distinct_layers(), c.shapes()]),
    Case("bias before norm", lambda: Convolution(p=0.0), lambda: Convolution(bias=False, p=0.0),
         [c.outputs("train", rows=("given", "normal"))], IMAGE),
    Case("eval without graph", lambda: Mlp(), lambda: Quiet(), [c.outputs(), c.saved_memory()]),
]  # fmt: skip


class Cloned(nn.Module):
    def __init__(self, same=True):
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        if same:
            self.b.load_state_dict(self.a.state_dict())

    def forward(self, x):
        return self.b(self.a(x).relu())


class Quiet(Mlp):
    def forward(self, x):
        with torch.set_grad_enabled(self.training):
            return super().forward(x)


WRONG = [
    Case("rms: other eps", Rms, lambda: rms_norm(1e-5), EQUAL),
    Case("rms: slightly other eps", Rms, lambda: rms_norm(1.1e-6), EQUAL),
    Case("rms: default eps", Rms, lambda: nn.RMSNorm(WIDTH), EQUAL),
    Case("rms: eps outside the root", Rms, lambda: Rms(outside=True), EQUAL),
    Case("rms: other eps, upcast", lambda: Rms(cast=True), lambda: Rms(1e-5, cast=True), EQUAL),
    Case("rms: lost affine", Rms, lambda: Rms(affine=False), [c.outputs()]),
    Case("rms: lost affine, parameters", Rms, lambda: Rms(affine=False), [c.parameters()]),
    Case("rms: lost affine, keys", Rms, lambda: Rms(affine=False), [c.state_dict_keys()]),
    Case("rms: one plus weight", Rms, lambda: Rms(plus=1.0), [c.outputs()]),
    Case("rms: no longer one plus weight", lambda: Rms(plus=1.0), Rms, [c.outputs()]),
    Case("rms: mean subtracted", Rms, lambda: Rms(centre=True), [c.outputs()]),
    Case("rms: wrong axis", Rms, lambda: Rms(axis=1), [c.outputs()], (4, 5, WIDTH)),
    Case("rms: both axes", Rms, lambda: Rms(axis=(1, 2)), [c.outputs()], (4, 5, WIDTH)),
    Case("rms: renamed key", Rms, lambda: Rms(name="scale"), [c.state_dict_keys()]),
    Case("rms: renamed key, outputs", Rms, lambda: Rms(name="scale"), [c.outputs()]),
    Case("rms: wrong dtype", lambda: Rms(), lambda: Doubling(), [c.outputs()]),
    Case("layer norm: unbiased", Layer, lambda: Layer(True), EQUAL),
    Case("layer norm: lost shift", Layer, lambda: Layer(bias=False), EQUAL),
    Case("layer norm: no affine", Layer, lambda: nn.LayerNorm(WIDTH, elementwise_affine=False), [c.outputs()]),
    Case("layer norm: eps", Layer, lambda: nn.LayerNorm(WIDTH, eps=1e-6), EQUAL),
    Case("layer norm: became rms", Layer, rms_norm, [c.outputs()]),
    Case("settings: other rate", lambda: nn.Dropout(0.5), lambda: nn.Dropout(0.4), [c.layer_settings()]),
    Case("variance: dropout still before the norm", shifted, shifted, [c.variance_kept()]),
    Case("dropout: still always on", lambda: Dropping("always"), lambda: Dropping("always"), GATE),
    Case("dropout: removed", lambda: Dropping("always"), lambda: Dropping("never"), GATE),
    Case("dropout: other rate", lambda: Dropping("always"), lambda: Dropping(p=0.4), GATE),
    Case("dropout: was gated before", Dropping, Dropping, GATE),
    Case("mask: scaled the wrong way", lambda: Dropping("unscaled"), lambda: Dropping("squared"), [c.expectation()]),
    Case("mask: still unscaled", lambda: Dropping("unscaled"), lambda: Dropping("unscaled", 0.2), [c.expectation()]),
    Case("mask: small rate unscaled", lambda: Dropping("inverted"), lambda: Dropping("unscaled", 0.1),
         [c.expectation(idempotent=True)]),
    Case("distribution: other rate", lambda: Dropping("inverted"), lambda: Dropping(p=0.4), [c.distribution()]),
    Case("distribution: per batch", lambda: Dropping("inverted"), lambda: Dropping("per batch"), [c.distribution()]),
    Case("distribution: no scale", lambda: Dropping("inverted"), lambda: Dropping("unscaled"), [c.distribution()]),
    Case("distribution: none", lambda: Dropping("inverted"), lambda: Dropping("never"), [c.distribution()]),
    Case("stacked: one kept", lambda: Dropping(twice=True), Dropping, [c.distribution()]),
    Case("gap: more dropout", lambda: Dropping(p=0.5), lambda: Dropping(p=0.9), [c.train_eval_gap()]),
    Case("gap: the same", Dropping, Dropping, [c.train_eval_gap()]),
    Case("list: still a list", Stack, lambda: Stack("part"), LIST),
    Case("list: other order", Stack, lambda: Stack("reversed"), LIST),
    Case("list: head lost", Stack, lambda: nn.Sequential(*[nn.Linear(WIDTH, 2) for _ in range(9)]), [c.registered()]),
    Case("init: still dead", lambda: Mlp(nn.init.zeros_), lambda: Mlp(nn.init.zeros_), ALIVE),
    Case("init: constant", lambda: Mlp(nn.init.zeros_), lambda: Mlp(constant), ALIVE),
    Case("init: too small", lambda: Mlp(nn.init.zeros_), lambda: Mlp(tiny), ALIVE),
    Case("init: too large", lambda: Mlp(tiny), lambda: Mlp(huge), [c.head_rms()]),
    Case("init: still large", lambda: Mlp(huge), lambda: Mlp(huge), [c.initial_loss()]),
    Case("init: does not train", lambda: Mlp(tiny), lambda: Mlp(nn.init.zeros_), [c.trains()]),
    Case("init: nothing was wrong", lambda: Mlp(xavier), lambda: Mlp(xavier), [c.head_rms(0.01, 10)]),
    Case("batch one: still batch norm", Convolution, Convolution, BATCH_ONE, IMAGE),
    Case("batch one: instance norm", lambda: Convolution(single=True),
         lambda: Convolution(nn.InstanceNorm2d, single=True), BATCH_ONE, IMAGE),
    Case("batch one: other outputs", Convolution, lambda: nn.Flatten(), [c.shapes()], IMAGE),
    Case("norm: still constant", lambda: Convolution(lambda n: nn.GroupNorm(n, n), single=True),
         lambda: Convolution(lambda n: nn.GroupNorm(8, n), single=True), [c.depends_on_input()], IMAGE),
    Case("frozen: still updating", Frozen, Frozen, [c.statistics_untouched()]),
    Case("frozen: momentum only", Frozen, lambda: Frozen(momentum=0.01), [c.statistics_untouched()]),
    Case("statistics: other momentum", Frozen, lambda: Frozen(momentum=0.2), [c.running_statistics()]),
    Case("momentum: still last batch", lambda: Frozen(momentum=0.99), lambda: Frozen(momentum=1.0),
         [c.statistics_error()], (64, WIDTH)),
    Case("log softmax: wrong axis", lambda: Log("log of softmax"), lambda: Log("wrong axis"), [c.outputs()]),
    Case("log softmax: twice", lambda: Log("log of softmax"), lambda: Log("twice"), [c.outputs(rows=FINE_ROWS)]),
    Case("log softmax: base", lambda: Log("log of softmax"), lambda: Log("log2"), [c.outputs(rows=FINE_ROWS)]),
    Case("softmax: order turned", lambda: Mlp(end=lambda: nn.Softmax(-1)), lambda: Mlp(end=lambda: nn.Softmin(-1)),
         [c.ranking()]),
    Case("softmax: still there", lambda: Mlp(end=lambda: nn.Softmax(-1)), lambda: Mlp(end=lambda: nn.Softmax(-1)),
         [c.loss_floor()]),
    Case("logits: more dropout", lambda: Mlp(end=lambda: nn.Dropout(0.2)), lambda: Mlp(end=nn.Dropout),
         [c.loss_floor()]),
    Case("evaluation: the mode makes no difference", Mlp, Mlp, [c.evaluation()]),
    Case("samples: still mixed", Mixing, Mixing, [c.samples_independent()]),
    Case("empty: still", Empty, Empty, [c.deterministic_construction()]),
    Case("half: eps still lost", lambda: HalfRms(eps=1e-8), lambda: HalfRms(eps=1e-8, outside=False), [c.finite()]),
    Case("half: overflows", lambda: HalfRms(eps=1e-8), lambda: HalfRms(eps=1e-3, outside=False), [c.finite()]),
    Case("spatial: distribution", Convolution, lambda: Convolution(drop=nn.Dropout2d), [c.distribution()], IMAGE),
    Case("alpha: still plain", lambda: Mlp(dropout=nn.Dropout, act=F.selu), lambda: Mlp(dropout=nn.Dropout, act=F.selu),
         [c.unit_variance()]),
    Case("bias: key lost", Convolution, lambda: Convolution(bias=False), [c.state_dict_keys()], IMAGE),
    Case("runs: still wrong size", lambda: Broken(5), lambda: Broken(6), [c.runs("eval")]),
    Case("raises after", Broken, lambda: Broken(5), [c.outputs()]),
    Case("cannot be built after", Broken, lambda: Broken("x"), [c.parameters()]),
    Case("clones: still", Cloned, Cloned, [c.distinct_layers()]),
    Case("layer outputs", lambda: Mlp(), lambda: Mlp(act=F.gelu), [c.layer_outputs()]),
    Case("memory: the same", Mlp, Mlp, [c.saved_memory()]),
    Case("random values of parameters", Mlp, lambda: Mlp(xavier), [c.parameters()]),
    Case("frozen parameter", Empty, lambda: NotTrained(), [c.parameters(values=False)]),
]  # fmt: skip


class Doubling(Rms):
    def forward(self, x):
        return super().forward(x).double()


class NotTrained(Empty):
    def __init__(self):
        super().__init__(nn.init.ones_)
        self.scale.requires_grad_(False)


@pytest.mark.parametrize("case", RIGHT, ids=lambda case: case.name)
def test_a_right_fix_is_validated(case: Case) -> None:
    results = check(case.before, case.after, case.claims, case.shape, case.moved)
    assert verdict(results) == ("validated", ""), results


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case.name)
def test_a_wrong_fix_is_refused(case: Case) -> None:
    results = check(case.before, case.after, case.claims, case.shape, case.moved)
    assert verdict(results)[0] == "refused", results


def test_every_kind_of_claim_has_a_check_and_a_wrong_fix_that_it_refuses() -> None:
    checked = {*compare.kinds(), *measure.kinds()}
    assert checked == set(c._KINDS)
    assert checked == {claim.kind for case in WRONG for claim in case.claims}


def test_what_cannot_be_checked_is_said() -> None:
    (result,) = check(lambda: Broken(5), Broken, [c.outputs()])
    assert result.holds is None
    assert "the model before the fix does not run: RuntimeError: mat1 and mat2" in result.detail
    (result,) = check(lambda: Output(lambda x: None), lambda: Output(lambda x: None), [c.ranking()])
    assert result.holds is None
    (result,) = check(Mlp, Mlp, [c.expectation()])
    assert (result.holds, result.detail) == (None, "after the fix: no module draws random numbers in training")


def test_nan_in_both_is_equal_but_nothing_else_is() -> None:
    never = [c.outputs()]
    assert check(lambda: Output(lambda x: x / 0 * 0), lambda: Output(lambda x: x / 0 * 0), never)[0].holds is None
    half = lambda: Output(lambda x: torch.where(x > 0, x, x / 0 * 0))  # noqa: E731
    assert check(half, half, never)[0].holds
    assert not check(half, lambda: Output(lambda x: torch.where(x > 0, x, 0 * x)), never)[0].holds
    assert not check(lambda: Output(lambda x: x), half, never)[0].holds
    where = [c.outputs(where_finite=True)]
    assert check(half, lambda: Output(lambda x: torch.where(x > 0, x, 0 * x)), where)[0].holds
    assert not check(lambda: Output(lambda x: x), half, where)[0].holds


def test_outputs_of_any_structure_are_compared() -> None:
    def nested(x: torch.Tensor) -> dict:
        return {"a": [x, Result(x * 2, {"b": x > 0})], "c": (x.argmax(-1), None, "text", 3)}

    def other(x: torch.Tensor) -> dict:
        return {"a": [x, Result(x * 2, {"b": x > 0.1})], "c": (x.argmax(-1), None, "text", 3)}

    assert check(lambda: Output(nested), lambda: Output(nested), [c.outputs(), c.gradients(), c.shapes()])[2].holds
    assert not check(lambda: Output(nested), lambda: Output(other), [c.outputs()])[0].holds
    assert not check(lambda: Output(nested), lambda: Output(lambda x: {"a": x}), [c.outputs()])[0].holds


def test_tokens_lazy_layers_and_tied_weights() -> None:
    class Language(nn.Module):
        def __init__(self, scale: float = 1.0) -> None:
            super().__init__()
            self.embed = nn.Embedding(20, 8)
            self.mix = nn.LazyLinear(8)
            self.head = nn.Linear(8, 20, bias=False)
            self.head.weight = self.embed.weight
            self.scale = scale

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.head(self.mix(self.embed(tokens)) * self.scale)

    inputs = LiveInputs((torch.arange(24).reshape(4, 6) % 20,))
    claims = [*SAME, c.samples_independent(idempotent=True)]
    before = Subject(lambda seed: Language(), inputs)
    assert verdict(validate(before, before, claims))[0] == "validated"
    assert verdict(validate(before, Subject(lambda seed: Language(1.001), inputs), claims))[0] == "refused"


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_other_dtypes(dtype: str) -> None:
    assert verdict(check(Rms, rms_norm, EQUAL, dtype=dtype))[0] == "validated"
    assert verdict(check(Rms, lambda: rms_norm(1e-5), EQUAL, dtype=dtype))[0] == "refused"
    assert verdict(check(Rms, Doubling, EQUAL, dtype=dtype))[0] == ("validated" if dtype == "float64" else "refused")


def test_code_that_upcasts_is_held_to_what_rounding_explains() -> None:
    exact, upcast = (check(lambda cast=cast: Rms(cast=cast), rms_norm, [c.outputs()])[0] for cast in (False, True))
    assert exact.tolerance is not None
    assert "float64: " in exact.detail
    assert upcast.tolerance is not None
    assert upcast.tolerance > 1e-7


def test_the_process_is_left_as_it_was() -> None:
    before, dtype = RandomState.now(), torch.get_default_dtype()
    check(Dropping, Dropping, [*GATE, *ALIVE, c.finite(), c.distribution()])
    assert before.changed() == ()
    assert torch.get_default_dtype() == dtype
    assert torch.is_grad_enabled()


def test_results_are_the_same_from_run_to_run() -> None:
    claims = [*GATE, c.distribution(), c.train_eval_gap()]
    assert check(Dropping, Dropping, claims) == check(Dropping, Dropping, claims)
