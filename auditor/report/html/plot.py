"""A figure over the depth of a model, on a logarithmic scale, as inline SVG.

Widths are per cent, so that a plot fills whatever it stands in and its dots and letters keep their size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from auditor.report.html.numbers import figure

HEIGHT, TOP, BAND = 204, 12, 28  # pixels: of the plot, above its scale, below its scale for exact zeros
MOST_TICKS = 6
DENSE = 80  # layers above which dots are smaller


@dataclass(frozen=True, slots=True)
class Series:
    """One curve: `values` by layer. `style`: "train", "eval" or "after"."""

    name: str
    style: str
    values: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Dot:
    x: float
    y: float
    title: str


@dataclass(slots=True)
class Curve:
    name: str
    style: str
    dots: list[Dot] = field(default_factory=list)
    lines: list[tuple[float, float, float, float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Column:
    """What is read out where the cursor stands."""

    x: float
    layer: str
    text: str


@dataclass(frozen=True, slots=True)
class Plot:
    """Ready to be written down: x in per cent, y in pixels."""

    title: str
    summary: str
    height: int
    ticks: list[tuple[float, str]]
    zero: float | None
    curves: list[Curve]
    columns: list[Column]
    radius: float
    ends: tuple[str, str]


def plot(title: str, layers: Sequence[str], series: Sequence[Series]) -> Plot | None:
    """The plot of one or more curves over the same layers; None where there is nothing to draw."""
    values = [v for curve in series for v in (curve.values.get(layer) for layer in layers) if v is not None]
    drawn = [value for value in values if 0 < value < math.inf]
    if len(layers) < 2 or not values:
        return None
    low = math.floor(math.log10(min(drawn))) if drawn else -1
    high = math.ceil(math.log10(max(drawn))) if drawn else 0
    high += 1 if high == low else 0
    has_zero = any(value == 0 for value in values)
    bottom = HEIGHT - (BAND if has_zero else 8)

    def y(value: float) -> float:
        if value == 0:
            return HEIGHT - 6.0
        if not math.isfinite(value):
            return 4.0
        return round(bottom - (math.log10(value) - low) / (high - low) * (bottom - TOP), 2)

    def x(index: int) -> float:
        return round(1.5 + 97 * index / (len(layers) - 1), 3)

    step = max(1, math.ceil((high - low) / MOST_TICKS))
    return Plot(
        title=title,
        summary=f"{title}: " + "; ".join(_spoken(curve, layers) for curve in series),
        height=HEIGHT,
        ticks=[(y(10.0**power), figure(10.0**power)) for power in range(low, high + 1, step)],
        zero=HEIGHT - 6.0 if has_zero else None,
        curves=[_curve(curve, layers, x, y) for curve in series],
        columns=[Column(x(i), layer, _read_out(layer, series)) for i, layer in enumerate(layers)],
        radius=2.2 if len(layers) > DENSE else 3.4,
        ends=(layers[0], layers[-1]),
    )


def _curve(series: Series, layers: Sequence[str], x: object, y: object) -> Curve:
    curve = Curve(series.name, series.style)
    last: Dot | None = None
    for index, layer in enumerate(layers):
        value = series.values.get(layer)
        if value is None:
            continue
        dot = Dot(x(index), y(value), f"{layer}: {figure(value)}")  # type: ignore[operator]
        if last is not None:
            curve.lines.append((last.x, last.y, dot.x, dot.y))
        curve.dots.append(dot)
        last = dot
    return curve


def _read_out(layer: str, series: Sequence[Series]) -> str:
    known = [(curve.name, curve.values.get(layer)) for curve in series]
    return " · ".join(f"{name} {figure(value)}" for name, value in known if value is not None)


def _spoken(series: Series, layers: Sequence[str]) -> str:
    values = [(layer, series.values[layer]) for layer in layers if series.values.get(layer) is not None]
    if not values:
        return f"{series.name}, nothing measured"
    (first, at_first), (last, at_last) = values[0], values[-1]
    return f"{series.name}, {figure(at_first)} at {first}, {figure(at_last)} at {last}"
