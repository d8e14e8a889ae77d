"""The callbacks in the real trainers, and what they share."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from auditor.integrations.healthy import UnhealthyModel, assert_healthy
from auditor.integrations.modes import entirely_in_eval_mode, left_in_train_mode
from auditor.integrations.training import ModeWarning, Watch, inputs_from
from tests.integrations.models import Sick, Well


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_modes() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Dropout(0.0), nn.BatchNorm1d(4), nn.LayerNorm(4))
    assert left_in_train_mode(model) == ["1", "3"]
    model[3].eval()
    assert left_in_train_mode(model) == ["1"]
    assert not entirely_in_eval_mode(model)
    assert entirely_in_eval_mode(model.eval())
    assert not entirely_in_eval_mode(nn.Linear(4, 4).eval())


def test_inputs_from_batches() -> None:
    class Net(nn.Module):
        def forward(self, x: Any, mask: Any, scale: float = 1.0) -> Any:
            return x

    x, y = torch.zeros(1), torch.ones(1)
    assert inputs_from(Net(), {"x": x, "labels": y}) == {"x": x}
    assert inputs_from(Net(), (x, y, y)) == (x, y)
    assert inputs_from(Well(), [x, y]) == (x,)
    assert inputs_from(Well(), x) is x


def test_watch_reports_warns_once_and_can_end_a_training(caplog: pytest.LogCaptureFixture) -> None:
    watch = Watch(select=["MOD"])
    with caplog.at_level(logging.WARNING, "auditor"):
        watch.audit(Sick(), (torch.randn(4, 8), torch.zeros(4)))
    assert "MOD004" in caplog.text
    assert watch.report is not None
    with pytest.raises(UnhealthyModel) as caught:
        Watch(fail_on="error").audit(Sick(), torch.randn(4, 8))
    assert [finding.code for finding in caught.value.report.findings] == ["MOD004"]
    Watch(fail_on="error").audit(Well(), torch.randn(4, 8))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(3):
            watch.check_evaluation(Well(), "validation")
        watch.check_evaluation(Well().eval(), "testing")
    assert [str(item.message) for item in seen] == [
        "validation runs with 1 layer in train mode (drop): call `model.eval()` before it"
    ]
    with pytest.raises(ValueError, match="unknown severity"):
        Watch(fail_on="sometimes")


def test_assert_healthy_leaves_no_trace() -> None:
    model, batch = Well().eval(), torch.randn(4, 8)
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    assert assert_healthy(model, batch).findings == []
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert not model.training


# Lightning -----------------------------------------------------------------------------------------------------------


def lightning_module(pl: Any, model: nn.Module, forget: bool = False) -> Any:
    class Module(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.model(x)  # type: ignore[no-any-return]

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return nn.functional.mse_loss(self(batch[0]), batch[1])

        def validation_step(self, batch: Any, index: int) -> None:
            if forget:
                self.train()
            self.log("loss", self.training_step(batch, index))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    return Module()


def loader() -> Any:
    data = torch.utils.data.TensorDataset(torch.randn(16, 8), torch.randn(16, 8))
    return torch.utils.data.DataLoader(data, batch_size=4)


def fit(pl: Any, module: Any, callback: Any) -> Any:
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
        "enable_checkpointing": False,
    }
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", callbacks=[callback], **quiet)
    trainer.fit(module, loader(), loader())
    return trainer


def test_lightning() -> None:
    pl = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
    from auditor.integrations.lightning import AuditCallback

    callback = AuditCallback(select=["MOD"])
    trainer = fit(pl, lightning_module(pl, Sick()), callback)
    assert trainer.global_step == 4
    assert [(finding.code, finding.modules) for finding in callback.report.findings] == [("MOD004", ("model",))]
    with pytest.raises(UnhealthyModel):
        fit(pl, lightning_module(pl, Sick()), AuditCallback(fail_on="error"))
    healthy = AuditCallback(fail_on="error")
    with warnings.catch_warnings():
        warnings.simplefilter("error", ModeWarning)
        fit(pl, lightning_module(pl, Well()), healthy)
    assert healthy.report.problems == []


def test_lightning_training_is_the_same_with_the_callback() -> None:
    pl = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
    from auditor.integrations.lightning import AuditCallback

    weights = []
    for callback in (AuditCallback(), pl.Callback()):
        pl.seed_everything(0, verbose=False)
        module = lightning_module(pl, Well())
        fit(pl, module, callback)
        weights.append(module.model.fc.weight.detach().clone())
    assert torch.equal(*weights)


def test_lightning_modes() -> None:
    pl = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
    from auditor.integrations.lightning import AuditCallback

    with pytest.warns(ModeWarning, match="validation runs with 1 layer in train mode"):
        fit(pl, lightning_module(pl, Well(), forget=True), AuditCallback())
    with pytest.warns(ModeWarning, match="training begins with every layer in eval mode"):
        fit(pl, lightning_module(pl, Well()).eval(), AuditCallback())


# The Hugging Face Trainer --------------------------------------------------------------------------------------------


def hugging_face(folder: Path, model: nn.Module, *callbacks: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
            logits = self.model(x)
            return {"loss": nn.functional.mse_loss(logits, labels), "logits": logits} if labels is not None else logits

    generator = torch.Generator().manual_seed(0)
    rows = [{"x": torch.randn(8, generator=generator), "labels": torch.zeros(8)} for _ in range(8)]
    arguments = TrainingArguments(
        str(folder), num_train_epochs=1, per_device_train_batch_size=4, report_to=[], use_cpu=True, save_strategy="no",
        disable_tqdm=True, eval_strategy="epoch", seed=0,
    )  # fmt: skip
    torch.manual_seed(0)
    return Trainer(Wrapped(), arguments, train_dataset=rows, eval_dataset=rows, callbacks=list(callbacks))


def test_hugging_face_trainer(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    from auditor.integrations.transformers import AuditCallback

    callback = AuditCallback(select=["MOD"])
    with warnings.catch_warnings():
        warnings.simplefilter("error", ModeWarning)
        hugging_face(tmp_path, Sick(), callback).train()
    assert [(finding.code, finding.modules) for finding in callback.report.findings] == [("MOD004", ("model",))]
    with pytest.raises(UnhealthyModel):
        hugging_face(tmp_path, Sick(), AuditCallback(fail_on="error")).train()


def test_hugging_face_training_is_the_same_with_the_callback(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    from auditor.integrations.transformers import AuditCallback

    weights = []
    for callbacks in ((AuditCallback(),), ()):
        torch.manual_seed(1)
        trainer = hugging_face(tmp_path, Well(), *callbacks)
        with torch.no_grad():
            trainer.model.model.fc.weight.fill_(0.1)
        trainer.train()
        weights.append(trainer.model.model.fc.weight.detach().clone())
    assert torch.equal(*weights)


def test_hugging_face_model_left_in_train_mode(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    from auditor.integrations.transformers import AuditCallback

    class Stuck(Well):
        def train(self, mode: bool = True) -> Stuck:
            return super().train(True)

    with pytest.warns(ModeWarning, match="evaluation runs with 1 layer in train mode"):
        hugging_face(tmp_path, Stuck(), AuditCallback()).train()
