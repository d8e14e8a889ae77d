"""Figures as people read them."""

from __future__ import annotations

import math

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
NOTHING = "–"


def figure(value: object) -> str:
    """Three digits: `0.0312`, `4.1·10⁻⁵`; a dash for nothing; words as they are."""
    if value is None:
        return NOTHING
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return count(value)
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}·10{str(int(exponent)).translate(_RAISED)}"


def share(value: float | None) -> str:
    """A share as per cent: `0 %`, `0.4 %`, `95 %`; never `100 %` for something less."""
    if value is None:
        return NOTHING
    per_cent = 100 * value
    if 99 < per_cent < 100:
        return f"{min(per_cent, 99.9):.1f} %"
    return f"{per_cent:.0f} %" if per_cent >= 1 or per_cent == 0 else f"{per_cent:.1g} %"


def count(value: int | None) -> str:
    """`1 234 567`, with narrow spaces that do not break."""
    return NOTHING if value is None else f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def short(value: int) -> str:
    """`650`, `17.3 k`, `86.6 M`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e3 if unit == 'k' else size):.3g}\N{NARROW NO-BREAK SPACE}{unit}"
    return count(value)


def shape(sizes: list[int] | None) -> str:
    """`8×3×32×32`; `scalar` for no axes."""
    return NOTHING if sizes is None else "×".join(map(str, sizes)) or "scalar"


def size(value: int | None) -> str:
    """Bytes: `812 B`, `1.2 MB`."""
    if value is None:
        return NOTHING
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= limit:
            return f"{value / limit:.3g}\N{NARROW NO-BREAK SPACE}{unit}"
    return f"{value}\N{NARROW NO-BREAK SPACE}B"


def seconds(value: float | None) -> str:
    """`1.2 s`, `3.4 ms`."""
    if value is None:
        return NOTHING
    return f"{value:.3g}\N{NARROW NO-BREAK SPACE}s" if value >= 1 else f"{1e3 * value:.3g}\N{NARROW NO-BREAK SPACE}ms"
