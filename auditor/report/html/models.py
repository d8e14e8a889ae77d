"""One audited model as the page shows it: its facts, plots, dropouts, norms, modes, and the tree of its layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from auditor.finding import Finding
from auditor.report.html.numbers import count, figure, shape, share, short
from auditor.report.html.plot import Plot, Series, plot

FOLDED = 80  # layers above which the inner parts of a tree are folded at first
HOLDERS = {"torch.nn.ModuleList", "torch.nn.ModuleDict"}  # they hold layers and are not called themselves
Record = Mapping[str, Any]


class Cell(NamedTuple):
    """A figure, and what the fixes make of it where that is another one."""

    text: str
    after: str = ""


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One line of the tree. `findings`: (anchor, code, severity) of what was found there."""

    anchor: str
    path: str
    name: str
    kind: str
    long_kind: str
    depth: int
    parts: bool
    cells: tuple[Cell, ...]
    remarks: str
    remarks_after: str
    findings: list[tuple[str, str, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Model:
    """One section of the page."""

    anchor: str
    name: str
    path: str
    facts: list[tuple[str, str]]
    unseen: list[str]
    plots: list[Plot]
    mended: bool
    dropouts: list[dict[str, Any]]
    norms: list[dict[str, Any]]
    gap: dict[str, str]
    rows: list[LayerRow]
    folded: bool


COLUMNS = ("Output", "Parameters", "dtype", "Scale, train", "Scale, eval", "Gradient", "Zeros", "Dropout, norm")


def model(record: Record, anchor: str, findings: Sequence[tuple[str, Finding]]) -> Model:
    """The section of one audit record, under `anchor`; `findings` with the anchors under which the page has them."""
    facts: Record = record.get("facts") or {}
    after: Record = record.get("facts_after") or {}
    rows = _rows(anchor, facts, after, [item for item in findings if record["name"] in item[1].models])
    return Model(
        anchor=anchor,
        name=record["name"],
        path=record["path"],
        facts=list(_facts(record)),
        unseen=list(_unseen(record, facts)),
        plots=_plots(facts, after),
        mended=bool(after),
        dropouts=_dropouts(anchor, record["name"], facts, after),
        norms=_norms(anchor, facts),
        gap=_gap(facts.get("gap"), after.get("gap")),
        rows=rows,
        folded=len(rows) > FOLDED,
    )


def _facts(record: Record) -> Iterable[tuple[str, str]]:
    if "parameters" in record:
        yield "Parameters", count(record["parameters"])
        yield "Layers", count(record["modules"])
    if "arguments" in record:
        yield "Built as", f"{record['name']}({record['arguments']}) ({record['arguments_from']})"
    if "input" in record:
        yield "Fed with", f"{record['input']} ({record['input_from']})"
    if "device" in record:
        yield "Run on", f"{record['device']}, {record['dtype']}, seed {record['seed']}"


def _unseen(record: Record, facts: Record) -> Iterable[str]:
    """What could not be looked at; never silent."""
    for mode, rung in record.get("capture", {}).items():
        if rung["rung"] == "hooks":
            yield f"Only the layers were seen in {mode} mode: {rung['reason']}"
        elif rung["rung"] == "none":
            yield f"It could not be run in {mode} mode: {rung['reason']}"
    if record.get("opaque"):
        yield f"Could not look into {', '.join(record['opaque'])}"
    if record.get("probe"):
        yield f"The initialisation was not probed: {record['probe']}"
    known = {rung["reason"] for rung in record.get("capture", {}).values()}
    for mode, reason in facts.get("reasons", {}).items():
        if reason not in known:
            yield f"Scales in {mode} mode could not be measured to the end: {reason}"


# Plots ----------------------------------------------------------------------------------------------------------------


def _plots(facts: Record, after: Record) -> list[Plot]:
    layers = _union(facts.get("depth", ()), after.get("depth", ()))
    now, then = _by_path(facts), _by_path(after)

    def values(known: Mapping[str, Record], key: str) -> dict[str, float | None]:
        return {path: known[path][key] for path in layers if path in known}

    before = "train, before" if after else "train"
    scales = [Series(before, "train", values(now, "scale"))]
    gradients = [Series(before if after else "gradient", "train", values(now, "gradient"))]
    if after:
        scales.append(Series("train, after the fixes", "after", values(then, "scale")))
        gradients.append(Series("train, after the fixes", "after", values(then, "gradient")))
    else:
        scales.append(Series("eval", "eval", values(now, "scale_eval")))
    drawn = [plot("Activation scale", layers, scales), plot("Gradient scale", layers, gradients)]
    return [item for item in drawn if item is not None]


def _union(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """The layers of both sides in order; one that only the second has stands behind its predecessor there."""
    merged = list(first)
    place = 0
    for path in second:
        if path in merged:
            place = merged.index(path) + 1
        else:
            merged.insert(place, path)
            place += 1
    return merged


def _by_path(facts: Record) -> dict[str, Record]:
    return {layer["path"]: layer for layer in facts.get("layers", ())}


# Tables ---------------------------------------------------------------------------------------------------------------


def _dropouts(anchor: str, name: str, facts: Record, after: Record) -> list[dict[str, Any]]:
    later = {item["path"]: item["rate"] for item in after.get("dropouts", ())}
    return [
        {
            "path": item["path"] or name,
            "row": item["location"][1] if item["location"] else 0,
            "anchor": f"{anchor}-{item['path']}",
            "rate": item["rate"],
            "along": item["along"],
            "rate_text": share(item["rate"]),
            "along_text": share(item["along"]),
            "after": share(later[item["path"]]) if later.get(item["path"], item["rate"]) != item["rate"] else "",
            "acts_on": item["acts_on"],
        }
        for item in facts.get("dropouts", ())
    ]


def _norms(anchor: str, facts: Record) -> list[dict[str, Any]]:
    return [
        {
            "path": item["path"] or "the model",
            "anchor": f"{anchor}-{item['path']}",
            "channels": count(item["channels"]),
            "sizes": f"{count(item['batch'])} × {count(item['positions'])}",
            "samples": count(item["batch"] * item["positions"]),
            "momentum": figure(item["momentum"]) if item["running"] else "no running statistics",
        }
        for item in facts.get("batch_norms", ())
    ]


def _gap(gap: Record | None, after: Record | None) -> dict[str, str]:
    if not gap:
        return {}
    shown = {"reason": gap.get("reason", ""), "noise_after": "", "shift_after": ""}
    if not shown["reason"]:
        shown |= {"noise": share(gap["noise"]), "shift": share(gap["shift"]), "passes": str(gap["passes"])}
    if after and "noise" in after:
        shown |= {"noise_after": share(after["noise"]), "shift_after": share(after["shift"])}
    return shown


# The tree -------------------------------------------------------------------------------------------------------------


def _rows(anchor: str, facts: Record, after: Record, findings: Sequence[tuple[str, Finding]]) -> list[LayerRow]:
    layers = facts.get("layers", ())
    parents = {layer["path"].rpartition(".")[0] for layer in layers if layer["path"]}
    then = _by_path(after)
    rows = []
    for layer in layers:
        path = layer["path"]
        here = [(a, f.code, str(f.severity)) for a, f in findings if path in f.modules]
        rows.append(
            LayerRow(
                anchor=f"{anchor}-{path}",
                path=path,
                name=path.rpartition(".")[2] or layer["kind"].rpartition(".")[2],
                kind=layer["kind"].rpartition(".")[2] if path else "",
                long_kind=layer["kind"],
                depth=path.count(".") + 1 if path else 0,
                parts=path in parents,
                cells=_cells(layer, then.get(path)),
                remarks=_remarks(layer),
                remarks_after=_remarks_after(layer, then.get(path)) if after else "",
                findings=here,
            )
        )
    return rows


def _cells(layer: Record, after: Record | None) -> tuple[Cell, ...]:
    parameters = short(layer["parameters"]) if layer["parameters"] else ""
    frozen = " frozen" if layer["parameters"] and not layer["trainable"] else ""
    return (
        Cell(shape(layer["out"]) if layer["out"] is not None else ""),
        Cell(parameters + frozen),
        Cell(layer["dtype"] or ""),
        *(_scale(layer[key], after[key] if after else None) for key in ("scale", "scale_eval", "gradient")),
        Cell(share(layer["zeros"]) if layer["zeros"] is not None else ""),
    )


def _scale(value: float | None, after: float | None) -> Cell:
    """A scale; what it is after the fixes where that is less than half or more than twice as much."""
    if value is None:
        return Cell("")
    moved = after is not None and not 0.5 * value <= after <= 2 * value
    return Cell(figure(value), figure(after) if moved else "")


def _remarks(layer: Record) -> str:
    told = [f"p = {figure(layer['rate'])}"] if layer["rate"] is not None else []
    told += [f"{layer['norm']} norm" if layer["norm"] != "own" else "its own norm"] if layer["norm"] else []
    told += [f"called {layer['calls']} times"] if layer["calls"] > 1 else []
    told += ["never called"] if not layer["calls"] and layer["kind"] not in HOLDERS else []
    told += [f"also {', '.join(layer['aliases'])}"] if layer["aliases"] else []
    return ", ".join(told)


def _remarks_after(layer: Record, after: Record | None) -> str:
    if after is None:
        return "gone"
    told = [after["kind"].rpartition(".")[2]] if after["kind"] != layer["kind"] else []
    told += [f"p = {figure(after['rate'])}"] if after["rate"] != layer["rate"] else []
    return ", ".join(told)
