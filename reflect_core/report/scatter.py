"""Judge against audit, a dot for each picture: where the two part is seen at a glance."""

from __future__ import annotations

from collections.abc import Sequence

from .audit import Both, Comparison

SIDE, LEFT, BELOW, AROUND = 190, 44, 38, 10
LEAST_SPAN = 0.1
"""Scores closer together than this are not drawn as if they were far apart."""


def scatter_svg(audited: Comparison) -> str:
    """An `<svg>` element, to the right the judge's score and upwards the audit's. Each dot links to `#c<id>`."""
    x, y = _scale([one.judge for one in audited.both]), _scale([one.audit for one in audited.both])
    width, height = LEFT + SIDE + AROUND, AROUND + SIDE + BELOW
    bottom = AROUND + SIDE
    parts = [f'<svg class="scatter" xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
             f'viewBox="0 0 {width} {height}" role="img" aria-label="judge against audit">',
             f'<rect class="area" x="{LEFT}" y="{AROUND}" width="{SIDE}" height="{SIDE}"/>']
    for low, anchor, at in ((True, "start", LEFT), (False, "end", LEFT + SIDE)):
        parts.append(f'<text x="{at}" y="{bottom + 15}" text-anchor="{anchor}">{x[0 if low else 1]:.2f}</text>')
    for low, at in ((True, bottom), (False, AROUND + 11)):
        parts.append(f'<text x="{LEFT - 5}" y="{at}" text-anchor="end">{y[0 if low else 1]:.2f}</text>')
    parts += [f'<text x="{LEFT + SIDE / 2}" y="{bottom + 30}" text-anchor="middle">judge</text>',
              f'<text x="{LEFT - 5}" y="{AROUND + SIDE / 2}" text-anchor="end">audit</text>']
    # The answer last, so that no other dot lies on it.
    for one in sorted(audited.both, key=lambda one: one == audited.chosen):
        at = LEFT + SIDE * _share(one.judge, x), bottom - SIDE * _share(one.audit, y)
        parts.append(_dot(one, at, one == audited.chosen))
    return "\n".join([*parts, "</svg>"])


def _dot(one: Both, at: tuple[float, float], chosen: bool) -> str:
    kind, radius = ("dot chosen", 6) if chosen else ("dot", 4)
    said = f"candidate {one.candidate}: judge {one.judge:.2f}, audit {one.audit:.2f}"
    return (f'<a href="#c{one.candidate}"><circle class="{kind}" cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="{radius}">'
            f"<title>{said}</title></circle></a>")


def _scale(values: Sequence[float]) -> tuple[float, float]:
    """The least and the most that an axis shows."""
    low, high = min(values), max(values)
    if high - low < LEAST_SPAN:
        middle = min(max((low + high) / 2, LEAST_SPAN / 2), 1 - LEAST_SPAN / 2)
        low, high = min(low, middle - LEAST_SPAN / 2), max(high, middle + LEAST_SPAN / 2)
    return low, high


def _share(value: float, scale: tuple[float, float]) -> float:
    """Where a value is on an axis, from 0 to 1, a little inside of its ends."""
    return 0.04 + 0.92 * (value - scale[0]) / (scale[1] - scale[0])
