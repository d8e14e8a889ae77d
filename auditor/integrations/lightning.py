"""A Lightning callback: audits the module on the first batch of a fit, and checks the mode at every evaluation.

Works with `lightning` and `pytorch_lightning`, whichever the program has imported.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from auditor.integrations.training import Watch

if TYPE_CHECKING:
    Callback: Any
elif "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules:
    from pytorch_lightning import Callback
else:
    try:
        from lightning.pytorch import Callback
    except ImportError:
        from pytorch_lightning import Callback


class AuditCallback(Callback):  # type: ignore[misc]
    """`Trainer(callbacks=[AuditCallback()])`. Keywords as of `auditor.integrations.training.Watch`: `fail_on`,
    `select`, `ignore`, `inputs`. `report` is the report of the audit once the fit has started.

    The audit runs before the first training batch, on that batch; module, gradients and random generators are left as
    they were.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.watch = Watch(**options)

    @property
    def report(self) -> Any:
        return self.watch.report

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.watch.check_training(pl_module)
            self.watch.audit(pl_module, batch)

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, *event: Any) -> None:
        self.watch.check_evaluation(pl_module, "validation")

    def on_test_batch_start(self, trainer: Any, pl_module: Any, *event: Any) -> None:
        self.watch.check_evaluation(pl_module, "testing")

    def on_predict_batch_start(self, trainer: Any, pl_module: Any, *event: Any) -> None:
        self.watch.check_evaluation(pl_module, "prediction")
