"""Changes of a model in memory, by the paths of its layers: what a rule's `rewrite` works with.

Nothing gets lost in silence: a layer that is replaced hands on its mode, its hooks and the attributes a user has set
on it, at all paths it has; what cannot be kept is refused with a ValueError that says why.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils.parametrize import is_parametrized

from auditor.dynamic.layer_facts import layer_facts
from auditor.dynamic.norms import measured_norm
from auditor.dynamic.state import RandomState, held_parts, modules_of, seed_all
from auditor.fix.claims import Claim, alive, expectation, layer_settings, symmetry_broken
from auditor.reference import initialization
from auditor.reference.conversion import by_context, carry_over, to_built_in
from auditor.reference.scheme import initialize

if TYPE_CHECKING:
    from auditor.dynamic.capture import Capture


class Surgery:
    """One model under the knife.

    `model` is a copy that may be changed; `capture` is what a run of a model with the same layers showed (shapes,
    graphs, the probe), `seed` that of every random draw. `changes` says in words what was done, in order; `claims` are
    those that any such change is held to, besides those of the rule.
    """

    def __init__(self, model: nn.Module, capture: Capture, seed: int = 0) -> None:
        self.model = model
        self.capture = capture
        self.seed = seed
        self.changes: list[str] = []
        self.claims: list[Claim] = []

    def module(self, path: str) -> Any:
        """The layer at `path` ("" for the model); ValueError if there is none (any more)."""
        try:
            return self.model.get_submodule(path)
        except AttributeError as error:
            raise ValueError(f"there is no layer `{path}` in this model") from error

    def shape(self, path: str) -> tuple[int, ...]:
        """Shape of the first tensor that the layer gets in a run; ValueError if it did not run."""
        facts = self.capture.modules.get(path)
        shapes = facts.in_shape if facts is not None else {}
        shape = shapes.get("train") or shapes.get("eval")
        if not shape:
            raise ValueError(f"`{path}` was not seen running")
        return shape

    def replace(self, path: str, new: nn.Module) -> None:
        """Put `new` in the place of the layer at `path`, and at every other path that this same instance has.

        `new` gets the mode, hooks and further attributes of the old layer (a conversion of `reference.conversion` has
        seen to that already, and to parameters). ValueError for the model itself, and for a layer that a plain list,
        dict or attribute holds as well, is scripted, or has weights that a parametrization computes.
        """
        old = self.module(path)
        if not path:
            raise ValueError("the model itself is this layer: replace it where it is built")
        self._refuse(path, old)
        before = repr(old)
        carry_over(old, new)
        places = [name for name, module in self.model.named_modules(remove_duplicate=False) if module is old]
        for place in places:
            parent, _, name = place.rpartition(".")
            self.model.get_submodule(parent)._modules[name] = new
        self.claims.append(layer_settings())
        self.changes.append(f"{', '.join(places)}: {before} → {new!r}")

    def _refuse(self, path: str, old: nn.Module) -> None:
        if isinstance(old, torch.jit.ScriptModule):
            raise ValueError(f"`{path}` is compiled (a ScriptModule)")
        if is_parametrized(old):
            raise ValueError(f"the weights of `{path}` are computed by a parametrization")
        for holder in modules_of(self.model):
            if any(part is old for part in held_parts(holder)):
                raise ValueError(f"`{path}` is also held in a plain attribute, where it would stay as it is")

    def set(self, path: str, **attributes: Any) -> None:
        """Set attributes of a layer that it has already, such as its `p`, `eps` or `momentum`."""
        module = self.module(path)
        for name, value in attributes.items():
            if not hasattr(module, name):
                raise ValueError(f"`{path}` has no attribute `{name}`")
            self.changes.append(f"{path}.{name}: {getattr(module, name)!r} → {value!r}")
            setattr(module, name, value)

    # Normalisation ---------------------------------------------------------------------------------------------------

    def use_built_in_norm(self, path: str) -> None:
        """Replace a layer that computes RMSNorm, LayerNorm or BatchNorm by torch's, with its own parameters and ε."""
        shape, module = self.shape(path), self.module(path)
        norm = measured_norm(module, shape[-1], len(shape))
        if norm is None:
            raise ValueError(f"`{path}` computes nothing that torch has built in")
        names = norm.weight, norm.bias, norm.offset_weight
        self.replace(path, to_built_in(module, norm.function, shape[-1], norm.epsilon, *names))

    def normalise_samples(self, path: str) -> None:
        """Replace a BatchNorm by what fits in its place (`reference.conversion.by_context`)."""
        shape = self.shape(path)
        self.replace(path, by_context(self.module(path), shape, distributed=_distributed()))

    def fold_bias(self, path: str, norm_path: str) -> None:
        """Drop the bias of the layer at `path`, which the BatchNorm at `norm_path` subtracts again; its running mean is
        lowered by it, so that evaluation stays the same function."""
        bias, norm = self.module(path).bias, self.module(norm_path)
        self.drop_parameter(path, "bias")
        mean = getattr(norm, "running_mean", None)
        if mean is not None:
            with torch.no_grad():
                mean.sub_(bias.to(mean.dtype))
            self.changes.append(f"{norm_path}.running_mean: less {path}.bias")

    def drop_parameter(self, path: str, name: str) -> None:
        """Make the parameter `name` of a layer None, as `bias=False` does; ValueError if another layer shares it."""
        module = self.module(path)
        self._refuse(path, module)
        owners = [p for _, m in self.model.named_modules() for p in m.parameters(recurse=False)]
        if sum(parameter is getattr(module, name) for parameter in owners) > 1:
            raise ValueError(f"`{path}.{name}` is shared with another layer")
        module.register_parameter(name, None)
        self.changes.append(f"{path}.{name}: removed")

    # Dropout ---------------------------------------------------------------------------------------------------------

    def exchange_dropout(self, path: str, kind: str) -> None:
        """Put `torch.nn.<kind>` (`"Dropout2d"`, `"AlphaDropout"`, `"Identity"`) in the place of a dropout layer of
        torch's, at the same rate. Nothing is done where the path is that of code which calls a function."""
        old = self.module(path)
        if isinstance(old, _DropoutNd):
            new: nn.Module = getattr(nn, kind)() if kind == "Identity" else getattr(nn, kind)(old.p, old.inplace)
            self.replace(path, new)
            if kind.startswith("Dropout"):
                self.claims.append(expectation(idempotent=True))

    def set_rate(self, path: str, rate: float, to: float) -> None:
        """Set the rates of dropout that a layer holds and that are `rate`. Nothing is done where it holds none."""
        for name, value in vars(self.module(path)).items():
            if isinstance(value, (int, float)) and abs(value - rate) < 1e-9 and (name == "p" or "drop" in name.lower()):
                self.set(path, **{name: to})

    def move_behind(self, path: str, other: str) -> None:
        """Move a layer of an `nn.Sequential` behind another one of it. All keep their names."""
        (parent, _, name), (holder, _, last) = path.rpartition("."), other.rpartition(".")
        container = self.module(parent)
        if parent != holder or type(container) is not nn.Sequential:
            raise ValueError(f"`{path}` and `{other}` are no members of one nn.Sequential: move it in the source")
        order = [key for key in container._modules if key != name]
        order.insert(order.index(last) + 1, name)
        members = dict(container._modules)
        container._modules.clear()
        container._modules.update((key, members[key]) for key in order)
        self.claims += [layer_settings(), expectation(idempotent=True)]
        self.changes.append(f"{path}: moved behind {other}")

    # Initial weights -------------------------------------------------------------------------------------------------

    def fill(self, name: str, scheme: str) -> None:
        """Fill the parameter called `name`: "zeros", "ones", "normal" (standard deviation 0.02) or "xavier_uniform"."""
        parameter = self.model.get_parameter(name)
        with _seeded(self.seed):
            if scheme in ("zeros", "ones"):
                initialization.constant(parameter, float(scheme == "ones"))
            elif scheme == "normal":
                initialization.small_normal(parameter, 0.02)
            else:
                initialization.xavier_uniform(parameter)
        self.changes.append(f"{name}: {scheme}")

    def initialize(self, paths: Iterable[str] = ()) -> None:
        """Give the layers at `paths` (all, if there are none) the reference initialisation for the activation that
        follows them in the recorded graph, by `reference.initialize`; deliberate zeros and gates are left alone."""
        chosen = set(paths)
        facts = [
            use if not chosen or use.path in chosen else dataclasses.replace(use, exempt="not concerned")
            for use in layer_facts(self.capture, self.model)
        ]
        with _seeded(self.seed):
            done = initialize(self.model, layers=facts)
        given = [entry for entry in done if entry.scheme != "kept"]
        if not given:
            reasons = [f"`{entry.parameter}`: {entry.reason}" for entry in done if entry.reason != "not concerned"]
            raise ValueError(f"there is no reference initialisation for these layers ({'; '.join(reasons) or 'none'})")
        self.claims += [alive(idempotent=True), symmetry_broken(idempotent=True)]
        self.changes += [f"{entry.parameter}: {entry.scheme} ({entry.reason})" for entry in given]

    def reset(self, paths: Iterable[str]) -> None:
        """Call `reset_parameters` of the layers at `paths` anew, each with random numbers of its own."""
        with _seeded(self.seed):
            for path in paths:
                module = self.module(path)
                reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
                if reset is None:
                    raise ValueError(f"`{path}`, a {type(module).__name__}, has no `reset_parameters`")
                reset()
                self.changes.append(f"{path}: reset_parameters()")


def _distributed() -> bool:
    """Whether this process trains together with others."""
    from torch import distributed

    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


class _seeded:
    """Random numbers from a seed, on every device; the generators are as before afterwards."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __enter__(self) -> None:
        self.state = RandomState.now()
        seed_all(self.seed)

    def __exit__(self, *error: object) -> None:
        self.state.restore()
