"""Scenes of the shapes world and their pictures.

A scene is a list of objects on a 64 x 64 canvas. Positions and sizes lie on a quarter-pixel grid,
so that each antialiased outline is computed once and pasted afterwards: thousands of pictures a
second, which is what training on freshly rendered scenes needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Sequence

import numpy as np
from PIL import Image

SIZE = 64
GRID = 0.25
"""Positions and radii are multiples of this, in pixels."""
SHAPES = ("circle", "square", "triangle", "star")
COLOURS = {
    "red": (214, 36, 44),
    "orange": (250, 136, 20),
    "yellow": (246, 214, 30),
    "green": (40, 158, 60),
    "cyan": (36, 192, 214),
    "blue": (34, 74, 208),
    "purple": (146, 56, 178),
    "black": (28, 28, 32),
}
BACKGROUND = (240, 240, 236)
UNSEEN_PAIRS = (("cyan", "circle"), ("orange", "square"), ("purple", "triangle"), ("green", "star"))
"""Colour and shape pairs that no training prompt or picture contains: a test of composition."""

MIN_RADIUS, MAX_RADIUS = 5.5, 10.5
REACH = {"circle": 0.92, "square": 0.80, "triangle": 1.15, "star": 1.18}
"""Size of each outline over its nominal radius, chosen so that areas are alike: circle radius,
half a square's side, circumradius of triangle and star."""
BOUNDS = REACH | {"square": 1.132}
"""Radius of each outline's bounding circle over its nominal radius."""
REACH_MOST = max(BOUNDS.values())
GAP = 2.0
"""Least empty space between the bounding circles of two objects, in pixels."""
SPACE = 5.0
"""The same in the scenes that a model learns from. A small model places objects to within a few pixels:
taught on scenes that are 2 pixels apart, it draws one in four crowded pictures with two objects in one."""
_SUPERSAMPLE = 8
HALF = 14
"""Half the side of a template in pixels; the largest outline of a scene reaches 12.4."""


@dataclass(frozen=True)
class Obj:
    """One object. `x` to the right, `y` downward, `r` the nominal radius, all in pixels."""

    shape: str
    colour: str
    x: float
    y: float
    r: float

    @property
    def reach(self) -> float:
        """Radius of the bounding circle in pixels."""
        return self.r * BOUNDS.get(self.shape, 1.0)

    @property
    def words(self) -> str:
        """What it is, e.g. 'red circle'."""
        return f"{self.colour} {self.shape}"


Scene = tuple[Obj, ...]


def _polygon(shape: str, r: float) -> np.ndarray:
    """Corners of an outline around the origin, as (K, 2) in order."""
    reach = REACH[shape] * r
    if shape == "square":
        return reach * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], dtype=float)
    count, radii = (3, [reach]) if shape == "triangle" else (10, [reach, 0.46 * reach])
    angles = -np.pi / 2 + np.arange(count) * 2 * np.pi / count
    lengths = np.array([radii[i % len(radii)] for i in range(count)])
    return np.stack([lengths * np.cos(angles), lengths * np.sin(angles)], axis=1)


def _inside(px: np.ndarray, py: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Even-odd rule: which points lie inside the polygon."""
    inside = np.zeros(px.shape, dtype=bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0)):
        if y0 == y1:
            continue
        crosses = (y0 > py) != (y1 > py)
        inside ^= crosses & (px < (x1 - x0) * (py - y0) / (y1 - y0) + x0)
    return inside


@lru_cache(maxsize=8192)
def template(shape: str, quarter_r: int, quarter_dx: int, quarter_dy: int) -> np.ndarray:
    """Coverage in [0, 1] of an outline, as (28, 28), its centre shifted by quarters of a pixel."""
    r, dx, dy = quarter_r * GRID, quarter_dx * GRID, quarter_dy * GRID
    n = 2 * HALF * _SUPERSAMPLE
    axis = (np.arange(n) + 0.5) / _SUPERSAMPLE - HALF
    px, py = np.meshgrid(axis - dx, axis - dy)
    if shape == "circle":
        mask = px**2 + py**2 <= (REACH["circle"] * r) ** 2
    else:
        mask = _inside(px, py, _polygon(shape, r))
    coverage = mask.reshape(2 * HALF, _SUPERSAMPLE, 2 * HALF, _SUPERSAMPLE).mean(axis=(1, 3))
    coverage.setflags(write=False)
    return coverage


def render_array(scene: Sequence[Obj]) -> np.ndarray:
    """The scene's picture as (64, 64, 3) uint8.

    Raises ValueError for an object that cannot be drawn: of no known shape or colour, too large, or with
    its centre far from the canvas. Objects may cross the edge and hide others before them.
    """
    canvas = np.empty((SIZE + 4 * HALF, SIZE + 4 * HALF, 3), dtype=np.float32)
    canvas[:] = BACKGROUND
    for obj in scene:
        _check(obj)
        qx, qy, qr = (round(v / GRID) for v in (obj.x, obj.y, obj.r))
        top, left = qy // 4 + HALF, qx // 4 + HALF
        alpha = template(obj.shape, qr, qx % 4, qy % 4)[..., None]
        window = canvas[top : top + 2 * HALF, left : left + 2 * HALF]
        window += alpha * (np.asarray(COLOURS[obj.colour], dtype=np.float32) - window)
    inner = canvas[2 * HALF : -2 * HALF, 2 * HALF : -2 * HALF]
    return np.rint(inner).astype(np.uint8)


def _check(obj: Obj) -> None:
    if obj.shape not in SHAPES or obj.colour not in COLOURS:
        raise ValueError(f"cannot draw a {obj.words}; expected one of {', '.join(SHAPES)} in {', '.join(COLOURS)}")
    if not (0 < obj.reach <= HALF and all(-HALF <= v <= SIZE + HALF for v in (obj.x, obj.y))):
        raise ValueError(f"cannot draw a {obj.words} at ({obj.x}, {obj.y}) with r {obj.r}; expected x and y from 0 to "
                         f"{SIZE} and r from {MIN_RADIUS} to {MAX_RADIUS}, all in pixels")


def render(scene: Sequence[Obj]) -> Image.Image:
    """The scene's picture, 64 x 64 RGB."""
    return Image.fromarray(render_array(scene))


def snap(value: float) -> float:
    """The nearest quarter of a pixel."""
    return round(value / GRID) * GRID


def fits(obj: Obj, others: Sequence[Obj], gap: float = GAP) -> bool:
    """Whether the object lies on the canvas and keeps its distance from the others."""
    edge = obj.reach + 0.5
    if not (edge <= obj.x <= SIZE - edge and edge <= obj.y <= SIZE - edge):
        return False
    return all((obj.x - o.x) ** 2 + (obj.y - o.y) ** 2 >= (obj.reach + o.reach + gap) ** 2 for o in others)
