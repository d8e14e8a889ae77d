"""What the callbacks of training frameworks share: an audit at the start, a look at the mode at every evaluation."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from auditor.finding import Severity
from auditor.integrations.healthy import UnhealthyModel
from auditor.integrations.modes import entirely_in_eval_mode, left_in_train_mode, shortened

if TYPE_CHECKING:
    from torch import nn

    from auditor.report import Report
    from auditor.settings import Settings

log = logging.getLogger("auditor")


class ModeWarning(UserWarning):
    """A model is trained or evaluated in the wrong mode."""


class Watch:
    """Audits one model once, and warns of wrong modes once each.

    `fail_on`: the severity from which a finding ends the training with `UnhealthyModel`; "never" (default) only
    reports. `select`, `ignore`: rules, on top of the settings of the current folder. `inputs`: makes the inputs of one
    forward (a tensor, a tuple or a dict of keyword arguments) from a batch; without it, they are what the forward takes
    from it by name, or its first parts. `report` is the report, once there is one.
    """

    def __init__(
        self,
        *,
        fail_on: str = "never",
        select: Sequence[str] = (),
        ignore: Sequence[str] = (),
        inputs: Callable[[Any], Any] | None = None,
    ) -> None:
        self.fail_on = None if fail_on == "never" else Severity.parse(fail_on)
        self.select = tuple(select)
        self.ignore = tuple(ignore)
        self.inputs = inputs
        self.report: Report | None = None
        self._warned: set[str] = set()

    def check_training(self, model: nn.Module) -> None:
        """Warn if every layer whose mode matters is in eval mode although training begins."""
        if entirely_in_eval_mode(model):
            self._warn(
                "training begins with every layer in eval mode: dropout is off and running statistics stand still; "
                "call `model.train()` before"
            )

    def audit(self, model: nn.Module, batch: Any) -> None:
        """Audit `model` on a batch and log the report. Raises UnhealthyModel from `fail_on` on."""
        from auditor.pipeline import audit_model

        if self.report is not None:
            return
        given = self.inputs(batch) if self.inputs else inputs_from(model, batch)
        settings = self._settings()
        place = next((p for p in (*model.parameters(), *model.buffers()) if p.is_floating_point()), None)
        device, dtype = ("cpu", "float32") if place is None else (str(place.device), str(place.dtype))
        report = audit_model(model, given, settings, device=device, dtype=dtype.removeprefix("torch."), facts=False)
        self.report = report
        if report.findings or report.problems:
            log.warning("%s", report)
        found = max((finding.severity for finding in report.findings), default=None)
        if self.fail_on is not None and found is not None and found >= self.fail_on:
            raise UnhealthyModel(f"{type(model).__name__} is not healthy\n\n{report}", report)

    def check_evaluation(self, model: nn.Module, where: str) -> None:
        """Warn if a layer whose mode matters is in train mode during `where`."""
        wrong = left_in_train_mode(model)
        if wrong:
            self._warn(
                f"{where} runs with {len(wrong)} {'layer' if len(wrong) == 1 else 'layers'} in train mode "
                f"({shortened(wrong)}): call `model.eval()` before it"
            )

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, ModeWarning, stacklevel=3)

    def _settings(self) -> Settings:
        from auditor.settings import load

        settings = load()
        return settings.override(select=self.select, ignore=(*settings.ignore, *self.ignore))


def inputs_from(model: nn.Module, batch: Any) -> Any:
    """What to call `model` with, from a batch of its loader: of a mapping what its forward takes by name, of a tuple as
    many parts as the forward requires, and anything else as it is."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    if isinstance(batch, Mapping):
        names = {p.name for p in parameters}
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        return {name: value for name, value in batch.items() if takes_all or name in names}
    if isinstance(batch, (tuple, list)):
        positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        required = sum(p.default is p.empty for p in positional)
        return tuple(batch[: max(1, required)])
    return batch
