"""A callback of the Hugging Face Trainer: audits the model as training begins, checks the mode at every evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from auditor.integrations.training import Watch

if TYPE_CHECKING:
    TrainerCallback: Any
else:
    from transformers import TrainerCallback


class AuditCallback(TrainerCallback):  # type: ignore[misc]
    """`Trainer(callbacks=[AuditCallback()])`. Keywords as of `auditor.integrations.training.Watch`: `fail_on`,
    `select`, `ignore`, `inputs`. `report` is the report of the audit once training has begun.

    The audit takes one batch of the training loader; the model, its gradients and the random generators, that of the
    loader's order included, are left as they were.
    """

    def __init__(self, **options: Any) -> None:
        self.watch = Watch(**options)

    @property
    def report(self) -> Any:
        return self.watch.report

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        from auditor.dynamic.state import RandomState

        generators = RandomState.now()
        try:
            batch = next(iter(given["train_dataloader"]))
        finally:
            generators.restore()
        self.watch.audit(given["model"], batch)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.watch.check_evaluation(given["model"], "evaluation")
