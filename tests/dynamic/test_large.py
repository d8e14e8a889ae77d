"""Models beyond the memory limit: what their initialisers, their shapes and a small twin tell."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from auditor.dynamic.build import TooLarge, construct, limited
from auditor.dynamic.large import Unseen, capture_large
from auditor.dynamic.service import Audit, audit_file
from auditor.dynamic.target import Target, find_targets
from auditor.dynamic.twin import shrunk, twin_of
from auditor.settings import Settings
from auditor.static.check import chosen_rules

LIMIT = 1 << 20  # bytes; the models below have a few MB
MEMORY = 4 * LIMIT / 2**30  # the setting, in GB, that gives this limit

DECODER = """
    import copy
    import torch
    import torch.nn.functional as F
    from dataclasses import dataclass
    from torch import nn

    @dataclass
    class Config:
        dim: int = 256
        n_layers: int = 6
        n_heads: int = 8
        vocab_size: int = 1000

    class Block(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.heads = config.n_heads
            self.norm = nn.LayerNorm(config.dim)
            self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
            self.out = nn.Linear(config.dim, config.dim, bias=False)

        def forward(self, x):
            q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            return x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    class Decoder(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.embed = nn.Embedding(config.vocab_size, config.dim)
            self.blocks = nn.ModuleList([Block(config) for _ in range(config.n_layers)])
            self.norm = nn.LayerNorm(config.dim)
            self.head = nn.Linear(config.dim, config.vocab_size, bias=False)
            {init}

        def forward(self, tokens):
            x = self.embed(tokens)
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x))

    def make():
        return Decoder(Config())
"""
GOOD = "self.apply(lambda m: nn.init.normal_(m.weight, std=0.02) if isinstance(m, (nn.Linear, nn.Embedding)) else None)"


def target(folder: Path, init: str = GOOD) -> Target:
    path = folder / "decoder.py"
    path.write_text(textwrap.dedent(DECODER).format(init=init))
    targets, problems = find_targets(f"{path}::make", limit=LIMIT)
    assert not problems
    return targets[0]


def captured(found: Target) -> Any:
    model, log, deferral = found.build_deferred()
    return capture_large(model, log, deferral, found.inputs(model), target=found)


def audited(folder: Path, init: str = GOOD) -> Audit:
    found = target(folder, init)
    return audit_file(f"{found.path}::make", chosen_rules(Settings()), Settings(memory=MEMORY))


def test_construction_stops_before_the_weights_are_filled(tmp_path: Path) -> None:
    found = target(tmp_path)
    assert found.large
    register = torch.nn.Module.register_parameter
    with pytest.raises(TooLarge), limited(LIMIT):
        construct(found.factory)
    assert torch.nn.Module.register_parameter is register
    with limited(1 << 30):
        assert not any(parameter.is_meta for parameter in construct(found.factory).parameters())


def test_the_signal_is_computed_as_a_real_run_measures_it(tmp_path: Path) -> None:
    found = target(tmp_path)
    capture = captured(found)
    assert {rung.name for rung in capture.rungs.values()} == {"shapes"}
    real = construct(found.factory)
    seen: dict[str, float] = {}

    def note(path: str) -> Any:
        def hook(module: torch.nn.Module, args: Any, out: torch.Tensor) -> None:
            seen[path] = float(out.detach().pow(2).mean().sqrt())

        return hook

    for path, module in real.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(note(path))
    with torch.no_grad():
        logits = real(torch.randint(0, 1000, (8, 16)))
    layers = {layer.path: layer for layer in capture.probe.layers if layer.path in seen}
    assert len(layers) == 13
    for path, layer in layers.items():
        assert layer.out_rms == pytest.approx(seen[path], rel=0.15), path
    assert capture.probe.head.name == "head.weight"
    assert capture.probe.head_rms == pytest.approx(1.0, rel=0.05)
    assert capture.probe.logit_std == pytest.approx(float(logits.std()), rel=0.1)


def test_the_whole_model_never_exists(tmp_path: Path) -> None:
    capture = captured(target(tmp_path))
    held = sum(facts.tensor.numel() for facts in capture.parameters.values())
    whole = sum(parameter.numel() for parameter in capture.model.parameters())
    assert held < whole / 4
    assert all(p.is_meta for p in capture.model.parameters() if p.numel() >= 4096)


def test_what_only_a_run_shows_is_refused(tmp_path: Path) -> None:
    capture = captured(target(tmp_path))
    with pytest.raises(Unseen):
        _ = capture.eval_rng
    with pytest.raises(Unseen):
        _ = capture.probe.ran
    with pytest.raises(Unseen):
        _ = capture.nodes("eval")[0].stats
    with pytest.raises(Unseen):
        capture.model(torch.zeros(1, 4, dtype=torch.int64))


def test_a_healthy_model_is_reported_clean_with_what_was_not_run(tmp_path: Path) -> None:
    found = audited(tmp_path)
    assert found.problems == []
    assert [finding.code for finding in found.findings if finding.severity.name != "INFO"] == []
    large, twin = found.records
    assert large["large"]
    assert "MOD010" in large["not_run"]
    assert "INI003" not in large["not_run"]
    assert "dim=32" in large["twin"]
    assert twin["capture"]["train"]["rung"] == "record"


@pytest.mark.parametrize(
    ("init", "code"),
    [
        ("self.gate = nn.Parameter(torch.empty(config.dim, config.dim))", "INI007"),
        ("[nn.init.constant_(b.out.weight, 0.1) for b in self.blocks]", "INI002"),
        ("[b.qkv.weight.data.copy_(b.qkv.weight.data[:1].expand_as(b.qkv.weight)) for b in self.blocks]", "INI003"),
        ("[nn.init.uniform_(b.out.weight) for b in self.blocks]", "INI005"),
        ("nn.init.normal_(self.head.weight, std=30.0)", "INI005"),
        ("self.blocks = nn.ModuleList([copy.deepcopy(self.blocks[0]) for _ in self.blocks])", "INI008"),
    ],
)
def test_initialisers_give_the_defect_away(tmp_path: Path, init: str, code: str) -> None:
    found = audited(tmp_path, init)
    codes = {finding.code for finding in found.findings if "make" in finding.models}
    assert code in codes
    at = [finding.location.path for finding in found.findings if finding.code == code]
    assert all(path.endswith("decoder.py") for path in at)


def test_a_constructor_that_reads_large_values_is_a_problem_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "reader.py"
    path.write_text(
        textwrap.dedent("""
        import torch
        from torch import nn

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc = nn.Linear(1000, 1000)
                self.scale = float(self.fc.weight.abs().max())

            def forward(self, x):
                return self.fc(x) / self.scale
        """)
    )
    found = audit_file(str(path), chosen_rules(Settings()), Settings(memory=MEMORY))
    assert found.findings == []
    assert len(found.problems) == 1
    assert "meta" in found.problems[0].message


def test_sizes_shrink_and_everything_else_stays(tmp_path: Path) -> None:
    twin, reason = twin_of(target(tmp_path))
    assert reason == ""
    assert twin is not None
    assert twin.name == "make (small twin)"
    model = twin.build()[0]
    assert type(model).__name__ == "Decoder"
    assert sum(parameter.numel() for parameter in model.parameters()) < 100_000
    config = {
        "hidden_size": 4096,
        "num_layers": 80,
        "eps": 1e-6,
        "act": "silu",
        "causal": True,
        "nested": {"n_heads": 64},
    }
    small = shrunk(config, "config")
    assert small == {
        "hidden_size": 32, "num_layers": 2, "eps": 1e-6, "act": "silu", "causal": True, "nested": {"n_heads": 4},
    }  # fmt: skip
    assert config["hidden_size"] == 4096
