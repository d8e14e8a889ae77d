"""What a fix promises: claims declared in rule files and checked by `fix/validate.py` on the running model.

A claim is plain data: which of the kinds below, with which options. Two sorts, never mixed: what must be *equal* before
and after the fix, and what must *improve*, that is be measured wrong before and right after. An improve-claim marked
`idempotent=True` may also hold before already, and must still hold after.

Nothing here imports torch, so that rule files can name claims at import.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

# kind → (what must happen, the English clause; {placeholders} are options).
_KINDS: dict[str, tuple[str, str]] = {
    "parameters": ("equal", "{which} keep their names, shapes and {values}"),
    "outputs": ("equal", "outputs in {mode} mode stay equal{where}"),
    "gradients": ("equal", "gradients of inputs and parameters in {mode} mode stay equal{where}"),
    "layer_outputs": ("equal", "the outputs of every layer in {mode} mode stay equal"),
    "state_dict_keys": ("equal", "{which} of the state dict stay the same, so that checkpoints load"),
    "layer_settings": ("equal", "layers keep their ε, rate, mode and hooks, and shared ones stay shared"),
    "running_statistics": ("equal", "running statistics after a training forward stay equal"),
    "shapes": ("equal", "shapes and dtypes of the outputs in {mode} mode stay the same"),
    "ranking": ("equal", "the order of the outputs over the last axis stays the same in {mode} mode"),
    "distribution": ("equal", "random outputs in {mode} mode keep their mean, spread and share of zeros"),
    "runs": ("improve", "the model runs in {mode} mode"),
    "repeatable": ("improve", "the forward in {mode} mode uses no random numbers and repeats exactly"),
    "registered": ("improve", "more parameters are registered with the model, and none is lost"),
    "alive": ("improve", "every weight receives a gradient within a few steps"),
    "symmetry_broken": ("improve", "the units of a layer differ after a few steps"),
    "distinct_layers": ("improve", "fewer layers start with identical weights"),
    "head_rms": ("improve", "the rms of the last layer's input at initialisation lies within [{low:g}, {high:g}]"),
    "initial_loss": ("improve", "the loss at initialisation is at most {high:g} ln C"),
    "trains": ("improve", "the loss on one batch falls by {share:.0%} or more in {steps} steps of Adam"),
    "deterministic_construction": ("improve", "construction leaves no parameter or buffer uninitialised"),
    "finite": ("improve", "outputs and gradients are finite in {dtype} for zero, tiny and huge rows, and none is lost"),
    "trains_at_batch_one": ("improve", "a training step on one sample is finite, and train mode agrees with eval mode"),
    "expectation": ("improve", "random layers keep their expectation: the mean output in training is the eval output"),
    "train_eval_gap": ("improve", "outputs in train mode lie closer to those in eval mode"),
    "evaluation": ("improve", "evaluating repeats exactly and leaves the state of the model as it is"),
    "loss_floor": ("improve", "a confident model reaches a lower loss in {mode} mode"),
    "unit_variance": ("improve", "dropout keeps the mean and variance of what passes through it"),
    "variance_kept": ("improve", "without dropout the inputs of BatchNorm layers vary nearly as much as with it"),
    "statistics_error": ("improve", "running statistics lie closer to those of the data"),
    "statistics_untouched": ("improve", "a forward in train mode leaves the running statistics as they are"),
    "samples_independent": ("improve", "no sample's output depends on another sample in {mode} mode"),
    "depends_on_input": ("improve", "the outputs depend on the inputs"),
    "saved_memory": ("improve", "the forward in {mode} mode keeps less memory for a backward pass"),
}

# The kinds of rows that outputs and gradients are compared on.
ROWS = ("given", "normal", "small", "large", "offset", "zero")


class Claim(NamedTuple):
    """One promise. `options` are (name, value) pairs in the order of the factory's arguments."""

    kind: str
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def must(self) -> str:
        """`"equal"` or `"improve"`."""
        return _KINDS[self.kind][0]

    @property
    def idempotent(self) -> bool:
        """Whether an improve-claim may hold already before the fix."""
        return bool(self.option("idempotent", False))

    @property
    def text(self) -> str:
        """One English clause, for documentation, reports and certificates."""
        options = dict(self.options)
        added = "all existing " if options.get("added") else "all "
        nouns = {"parameters": "parameters", "state_dict_keys": "keys"}
        words: dict[str, Any] = {
            **options,
            "which": added + nouns.get(self.kind, ""),
            "values": "initial values" if options.get("values") else "dtypes",
            "where": " wherever they were finite" if options.get("where_finite") else "",
        }
        return _KINDS[self.kind][1].format(**words)

    def option(self, name: str, default: Any = None) -> Any:
        return dict(self.options).get(name, default)

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "options": {name: _listed(value) for name, value in self.options}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Claim:
        """The claim that `to_json` gave; ValueError for an unknown kind."""
        if data["kind"] not in _KINDS:
            raise ValueError(f"unknown claim {data['kind']!r}")
        options = data.get("options", {})
        return cls(data["kind"], tuple((name, _tupled(value)) for name, value in options.items()))


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _claim(kind: str, **options: Any) -> Claim:
    return Claim(kind, tuple(options.items()))


# Must be equal -----------------------------------------------------------------------------------------------------


def parameters(*, values: bool = True, added: bool = False) -> Claim:
    """Names, shapes, dtypes (and, with `values`, initial values under one seed) stay; `added`: new ones may come."""
    return _claim("parameters", values=values, added=added)


def outputs(
    mode: str = "eval", seed: int = 0, *, rows: tuple[str, ...] = ROWS, where_finite: bool = False, random: bool = True
) -> Claim:
    """Outputs stay equal in `mode`, random operations seeded with `seed`, on the kinds of input `rows`.

    `where_finite`: an output that was infinite or NaN before may change. `random=False`: random layers are switched off
    (for a train-mode comparison in which the fix changes only the random part).
    """
    return _claim("outputs", mode=mode, seed=seed, rows=rows, where_finite=where_finite, random=random)


def gradients(
    mode: str = "train", seed: int = 0, *, rows: tuple[str, ...] = ROWS, where_finite: bool = False, random: bool = True
) -> Claim:
    """Gradients with respect to inputs and parameters stay equal in `mode`; options as in `outputs`."""
    return _claim("gradients", mode=mode, seed=seed, rows=rows, where_finite=where_finite, random=random)


def layer_outputs(mode: str = "eval", seed: int = 0) -> Claim:
    """Every layer that exists before and after under the same path gives the same output."""
    return _claim("layer_outputs", mode=mode, seed=seed)


def state_dict_keys(*, added: bool = False) -> Claim:
    """The keys of the state dict stay; `added`: new ones may come."""
    return _claim("state_dict_keys", added=added)


def layer_settings() -> Claim:
    """At every path there before and after: ε, dropout rate, heads and batch axis of attention, mode, hooks, number of
    parameters that learn; and which paths are one instance. What a layer of another kind does not have is left out."""
    return _claim("layer_settings")


def running_statistics(seed: int = 0) -> Claim:
    """Buffers after one training forward stay equal."""
    return _claim("running_statistics", seed=seed)


def shapes(mode: str = "eval") -> Claim:
    """Structure, shapes and dtypes of the outputs stay the same (for a fix that changes the function itself)."""
    return _claim("shapes", mode=mode)


def ranking(mode: str = "eval") -> Claim:
    """The order of the outputs over the last axis stays the same (logits in place of probabilities)."""
    return _claim("ranking", mode=mode)


def distribution(mode: str = "train") -> Claim:
    """Random outputs keep their distribution: mean, spread and share of zeros agree within sampling error."""
    return _claim("distribution", mode=mode)


# Must improve ------------------------------------------------------------------------------------------------------


def runs(mode: str = "train", *, idempotent: bool = False) -> Claim:
    """The model raised in `mode`, and runs after the fix."""
    return _claim("runs", mode=mode, idempotent=idempotent)


def repeatable(mode: str = "eval", *, idempotent: bool = False) -> Claim:
    """The state of the random generators is the same after a forward, and outputs under two seeds are bit-equal."""
    return _claim("repeatable", mode=mode, idempotent=idempotent)


def registered() -> Claim:
    """`named_parameters()` lists more parameters, and all that it listed before."""
    return _claim("registered")


def alive(*, idempotent: bool = False) -> Claim:
    """No weight is without gradient in all of the probe's steps."""
    return _claim("alive", idempotent=idempotent)


def symmetry_broken(*, idempotent: bool = False) -> Claim:
    """No weight still has more than half of its rows duplicated after the probe's steps."""
    return _claim("symmetry_broken", idempotent=idempotent)


def distinct_layers() -> Claim:
    """Fewer pairs of untied weights are identical at initialisation."""
    return _claim("distinct_layers")


def head_rms(low: float = 0.1, high: float = 10.0, *, idempotent: bool = False) -> Claim:
    """The rms of the last weight layer's input lies within [`low`, `high`]."""
    return _claim("head_rms", low=low, high=high, idempotent=idempotent)


def initial_loss(high: float = 3.0, *, idempotent: bool = False) -> Claim:
    """The cross-entropy at initialisation is at most `high` times the logarithm of the number of classes."""
    return _claim("initial_loss", high=high, idempotent=idempotent)


def trains(steps: int = 60, share: float = 0.1, *, idempotent: bool = False) -> Claim:
    """`steps` steps of Adam (1e-3) on one batch lower the loss by `share` of the loss of an uninformed model."""
    return _claim("trains", steps=steps, share=share, idempotent=idempotent)


def deterministic_construction(*, idempotent: bool = False) -> Claim:
    """Building with filled memory shows no parameter or buffer that nothing wrote; two builds are bit-equal."""
    return _claim("deterministic_construction", idempotent=idempotent)


def finite(dtype: str = "float16", *, idempotent: bool = False) -> Claim:
    """Zero rows and rows of scale 1e-3 and 1e3 give finite outputs and gradients, and no output row is lost."""
    return _claim("finite", dtype=dtype, idempotent=idempotent)


def trains_at_batch_one(gap: float = 0.1, *, idempotent: bool = False) -> Claim:
    """One training step on one sample works, and outputs in train and eval mode differ by at most `gap` (relative)."""
    return _claim("trains_at_batch_one", gap=gap, idempotent=idempotent)


def expectation(*, idempotent: bool = False) -> Claim:
    """The mean output of random layers over many seeds agrees with their eval output (t-test, false alarm 1e-6)."""
    return _claim("expectation", idempotent=idempotent)


def train_eval_gap() -> Claim:
    """The relative distance between outputs in train and in eval mode becomes smaller."""
    return _claim("train_eval_gap")


def evaluation() -> Claim:
    """What the fix of a script gains that calls `eval()`: the model is evaluated in train mode before, and in eval
    mode after. It fails where the mode makes no difference to this model."""
    return _claim("evaluation")


def loss_floor(mode: str = "train") -> Claim:
    """The expected loss on the model's own confident predictions becomes lower."""
    return _claim("loss_floor", mode=mode)


def unit_variance() -> Claim:
    """Dropout layers change mean and standard deviation of their input less than before."""
    return _claim("unit_variance")


def variance_kept() -> Claim:
    """The variance of what reaches a BatchNorm without dropout, relative to that with it, comes to at least 0.9."""
    return _claim("variance_kept")


def statistics_error() -> Claim:
    """After 50 training forwards, running means and variances lie closer to those of the data."""
    return _claim("statistics_error")


def statistics_untouched(*, idempotent: bool = False) -> Claim:
    """Forwards in train mode no longer change the running statistics."""
    return _claim("statistics_untouched", idempotent=idempotent)


def samples_independent(mode: str = "eval", *, idempotent: bool = False) -> Claim:
    """The gradient of one sample's output with respect to another sample's input is exactly zero."""
    return _claim("samples_independent", mode=mode, idempotent=idempotent)


def depends_on_input(*, idempotent: bool = False) -> Claim:
    """Outputs of different samples differ."""
    return _claim("depends_on_input", idempotent=idempotent)


def saved_memory(mode: str = "eval") -> Claim:
    """A forward keeps fewer bytes for a backward pass."""
    return _claim("saved_memory", mode=mode)
