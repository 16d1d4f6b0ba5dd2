"""Naming one piece of a picture: which outline, where and how large, fits a soft mask best.

A start in closed form (area and centroid give radius and centre of each shape), then a short local
search on the quarter-pixel grid for the outlines that could still win.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage

from .scene import GRID, HALF, REACH, SHAPES, SIZE, template

SIGMAS = (0.0, 0.6, 1.0, 1.5)
"""Softness of the edges, in pixels, with which outlines are compared."""
CLEAR = 0.95
"""An overlap above which no search is needed."""
RIVAL = 0.10
"""Outlines whose first overlap is this much below the best are out of the race."""
SEEN_SHARE = 0.55
"""Least share of an outline that other objects must leave in sight."""
CLIMBS = 6
"""Most steps of the local search, each of a quarter or half a pixel."""
_STEPS = ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1), (0, 0, 2), (0, 0, -2))
_MIN_QR, _MAX_QR = round(4.0 / GRID), round(11.75 / GRID)
_PAD = 2 * HALF
AREA = {
    "circle": np.pi * REACH["circle"] ** 2,
    "square": 4 * REACH["square"] ** 2,
    "triangle": 0.75 * np.sqrt(3) * REACH["triangle"] ** 2,
    "star": 5 * 0.46 * np.sin(np.pi / 5) * REACH["star"] ** 2,
}
"""Area of each outline over the square of its nominal radius. All have their centroid at the centre."""


@dataclass(frozen=True)
class Fit:
    """An outline on a mask: `x`, `y` and nominal radius `r` in pixels, overlap in [0, 1]."""

    overlap: float
    shape: str
    x: float
    y: float
    r: float


@dataclass(frozen=True)
class _Mask:
    """What is compared: stretched coverage, and where it may be trusted (None: everywhere), both padded."""

    amount: np.ndarray
    seen: np.ndarray | None


def fit(soft: np.ndarray, hidden: np.ndarray | None = None) -> Fit | None:
    """The outline that overlaps best with `soft`, coverage as (64, 64); None when no size is right.

    Pixels in `hidden`, a (64, 64) mask, belong to other objects and count neither for nor against.
    The overlap is the soft intersection over union, at the edge softness that suits best.
    """
    hidden = hidden if hidden is not None and hidden.any() else None
    amount = stretch(soft)
    if hidden is not None:
        amount[hidden] = 0.0
    mask = _Mask(np.pad(amount, _PAD), None if hidden is None else np.pad(~hidden, _PAD, constant_values=True))
    x, y, area = moments(soft)
    qx, qy = round(x / GRID), round(y / GRID)
    starts = []
    for shape in SHAPES:
        qr = round(np.sqrt(area / AREA[shape]) / GRID)
        if _MIN_QR <= qr <= _MAX_QR:
            starts.append((_overlap(mask, shape, qx, qy, qr), qx, qy, qr, shape))
    if not starts:
        return None
    best = max(starts)
    if best[0] < CLEAR:
        bar = best[0] - RIVAL
        best = max(_climb(mask, *start) for start in starts if start[0] >= bar)
    overlap, qx, qy, qr, shape = best
    return Fit(overlap, shape, qx * GRID, qy * GRID, qr * GRID)


def moments(soft: np.ndarray) -> tuple[float, float, float]:
    """Centroid x and y in pixels and area in square pixels of a soft mask (64, 64)."""
    rows, columns = soft.sum(axis=1), soft.sum(axis=0)
    area = max(float(rows.sum()), 1.0)
    axis = np.arange(SIZE) + 0.5
    x, y = float(columns @ axis) / area, float(rows @ axis) / area
    return min(max(x, 0.0), SIZE), min(max(y, 0.0), SIZE), area


def stretch(amount: np.ndarray) -> np.ndarray:
    """Coverage with its ends flattened, which takes most of the noise away."""
    return np.clip((amount - 0.12) / 0.76, 0.0, 1.0).astype(np.float32)


def _climb(mask: _Mask, overlap: float, qx: int, qy: int, qr: int, shape: str) -> tuple:
    """The best overlap near a start; moments err where an object is partly hidden or noisy."""
    best = (overlap, qx, qy, qr)
    for _ in range(CLIMBS):
        start = best
        for dx, dy, dr in _STEPS:
            x, y, r = best[1] + dx, best[2] + dy, best[3] + dr
            if _MIN_QR <= r <= _MAX_QR:
                best = max(best, (_overlap(mask, shape, x, y, r), x, y, r))
        if best is start or best[0] >= CLEAR:
            break
    return (*best, shape)


def _overlap(mask: _Mask, shape: str, qx: int, qy: int, qr: int) -> float:
    top, left = qy // 4 - HALF + _PAD, qx // 4 - HALF + _PAD
    window = np.s_[top : top + 2 * HALF, left : left + 2 * HALF]
    outlines, areas = _outlines(shape, qr, qx % 4, qy % 4)
    if mask.seen is not None:
        outlines = outlines * mask.seen[window]
        in_sight = outlines.sum(axis=(1, 2))
        if in_sight[0] < SEEN_SHARE * areas[0]:
            return 0.0
        areas = in_sight
    both = np.minimum(outlines, mask.amount[window]).sum(axis=(1, 2))
    # min + max = sum, so the union needs no second pass; what lies beyond the window counts against.
    return float((both / np.maximum(areas + mask.amount.sum() - both, 1e-6)).max())


@lru_cache(maxsize=8192)
def _outlines(shape: str, quarter_r: int, quarter_dx: int, quarter_dy: int) -> tuple[np.ndarray, np.ndarray]:
    """An outline at each softness of SIGMAS, stretched, as (len(SIGMAS), 28, 28), and their areas."""
    sharp = template(shape, quarter_r, quarter_dx, quarter_dy).astype(np.float32)
    out = np.stack([stretch(ndimage.gaussian_filter(sharp, s) if s else sharp) for s in SIGMAS])
    out.setflags(write=False)
    return out, out.sum(axis=(1, 2))
