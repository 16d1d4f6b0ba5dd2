"""Exact eyes for the shapes world: from a picture to the objects in it, without a trained network.

Made for pictures that a diffusion model and a small autoencoder draw: soft edges, shifted colours,
a little noise. It goes in three steps.

1. Name each pixel. A rim pixel is a mix of its object's colour and the background, so each pixel is
   fitted as background + a (colour - background) for every palette colour; the smallest residual
   names it and `a` says how much of it is covered. Nearest colour would misname rims.
2. Cut the covered area into pieces, one an object: connected, of one colour. Only solid pieces count;
   thin misnamed rims join the solid piece next to them.
3. Fit each piece. Its soft area and centroid give centre and radius for each shape in closed form;
   the outline with the best overlap names it, or 'blob' when none is good enough. A piece that no
   outline fits is cut at its waists, for two objects of one colour that touch.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Iterable

import numpy as np
from PIL import Image
from scipy import ndimage

from .scene import _HALF, _template, BACKGROUND, COLOURS, GRID, REACH, SHAPES, SIZE, Obj

BLOB = "blob"
"""The shape of something that is no known shape."""
MIN_OVERLAP = 0.84
"""Least soft intersection over union with the best outline. A circle and a square of one area reach
0.83, so that a lower bound would let one pass for a bad picture of the other."""
MIN_AREA = 16.0
"""Pixels; anything smaller is a speck and not reported. The smallest whole object covers 57."""
COVERED = 0.5
"""Pixels covered by more than this belong to an object's body; less than that is its rim."""
RIM = 2.3
"""How far from the body, in pixels, coverage still counts as the object's rim."""
SIGMAS = (0.0, 0.6, 1.0)
"""Softness of the edges, in pixels, with which outlines are compared."""
_MIN_QR, _MAX_QR = round(4.0 / GRID), round(11.75 / GRID)
_NAMES = tuple(COLOURS)
_PALETTE = np.array([COLOURS[name] for name in _NAMES], dtype=np.float32)
_AREA = {
    "circle": np.pi * REACH["circle"] ** 2,
    "square": 4 * REACH["square"] ** 2,
    "triangle": 0.75 * np.sqrt(3) * REACH["triangle"] ** 2,
    "star": 5 * 0.46 * np.sin(np.pi / 5) * REACH["star"] ** 2,
}
"""Area of each outline over the square of its nominal radius. All have their centroid at the centre."""
_CROSS = ndimage.generate_binary_structure(2, 1)
_SQUARE = np.ones((3, 3), dtype=bool)


def detect(picture: Image.Image | np.ndarray) -> tuple[Obj, ...]:
    """The objects in a picture, from the top downward.

    `picture` is 64 x 64 RGB, a PIL image or an array (64, 64, 3) of uint8; ValueError otherwise.
    `x`, `y` and `r` of the objects are in pixels. What is no known shape has the shape 'blob', the
    nearest palette colour, and the radius of a circle of its area.
    """
    pixels = _pixels(picture)
    background = _background(pixels)
    label, cover = _name_pixels(pixels, background)
    pieces, count = _cut(label, cover)
    if not count:
        return ()
    found: list[Obj] = []
    distance, nearest = ndimage.distance_transform_edt(pieces == 0, return_indices=True)
    # Each rim pixel belongs to the nearest body, so that neighbours do not lend each other area.
    owner = np.where(distance <= RIM, pieces[nearest[0], nearest[1]], 0)
    for k in range(1, count + 1):
        body = pieces == k
        colour = _body_colour(pixels, body, cover)
        direction = colour - background
        amount = ((pixels - background) @ direction) / max(float(direction @ direction), 1.0)
        soft = np.where(owner == k, amount, 0.0)
        if np.clip(soft, 0, 1).sum() < MIN_AREA:
            continue
        name = _NAMES[int(np.argmin(((_PALETTE - colour) ** 2).sum(axis=1)))]
        hidden = body_of_others(pieces, k)
        found += _fit_piece(soft, body, hidden, name)
    return tuple(sorted(found, key=lambda o: (o.y, o.x)))


def detect_many(pictures: Iterable[Image.Image | np.ndarray]) -> list[tuple[Obj, ...]]:
    """`detect` for each of several pictures."""
    return [detect(picture) for picture in pictures]


def _pixels(picture: Image.Image | np.ndarray) -> np.ndarray:
    """The picture as (64, 64, 3) float32 in [0, 255]."""
    if isinstance(picture, Image.Image):
        picture = np.asarray(picture.convert("RGB"))
    pixels = np.asarray(picture)
    if pixels.shape != (SIZE, SIZE, 3):
        raise ValueError(f"got a picture of shape {pixels.shape}; expected ({SIZE}, {SIZE}, 3): the detector "
                         "reads pictures of the shapes world only")
    return pixels.astype(np.float32)


def _background(pixels: np.ndarray) -> np.ndarray:
    """The background's colour: the median where that is near the true one (models shift it a little)."""
    true = np.array(BACKGROUND, dtype=np.float32)
    median = np.median(pixels.reshape(-1, 3), axis=0).astype(np.float32)
    return median if np.abs(median - true).max() < 25 else true


def _name_pixels(pixels: np.ndarray, background: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of the best palette colour and coverage in [0, 1] by it, both (64, 64)."""
    directions = _PALETTE - background
    lengths = (directions**2).sum(axis=1)
    offset = (pixels - background).reshape(-1, 3)
    along = offset @ directions.T
    amount = np.clip(along / lengths, 0.0, 1.0)
    # |offset - a d|^2 without |offset|^2, which is the same for all colours.
    residual = amount * (amount * lengths - 2 * along)
    label = residual.argmin(axis=1)
    cover = np.take_along_axis(amount, label[:, None], axis=1)[:, 0]
    return label.reshape(SIZE, SIZE), cover.reshape(SIZE, SIZE)


def _cut(label: np.ndarray, cover: np.ndarray) -> tuple[np.ndarray, int]:
    """Pieces of one colour, numbered from 1, as (64, 64) with 0 for none, and how many there are."""
    covered = cover > COVERED
    regions, count = ndimage.label(covered, _CROSS)
    if not count:
        return regions, 0
    pieces = np.zeros_like(regions)
    total = 0
    boxes = ndimage.find_objects(regions)
    for k, box in enumerate(boxes, start=1):
        region = regions[box] == k
        if region.sum() < MIN_AREA / 2:
            continue
        names = np.where(region, label[box], -1)
        solids, solid_count = np.zeros(region.shape, dtype=np.int32), 0
        for colour in np.unique(names[region]):
            mask = names == colour
            if mask.sum() < MIN_AREA / 2:
                continue
            parts, n = ndimage.label(mask, _CROSS)
            if n == 0:
                continue
            # Solid: some 3 x 3 square fits in. Misnamed rims are a pixel or two wide.
            core = ndimage.binary_erosion(mask, _SQUARE)
            sizes = np.bincount(parts.ravel(), minlength=n + 1)
            for part in np.unique(parts[core]):
                if sizes[part] >= MIN_AREA / 2:
                    solid_count += 1
                    solids[parts == part] = solid_count
        if solid_count > 1:
            nearest = ndimage.distance_transform_edt(solids == 0, return_distances=False, return_indices=True)
            solids = np.where(region, solids[nearest[0], nearest[1]], 0)
        else:
            solids, solid_count = region.astype(np.int32), 1
        pieces[box] = np.where(solids > 0, solids + total, pieces[box])
        total += solid_count
    return pieces, total


def body_of_others(pieces: np.ndarray, k: int) -> np.ndarray:
    """Where other pieces may hide piece `k`, as a (64, 64) mask."""
    return (pieces != k) & (pieces != 0)


def _body_colour(pixels: np.ndarray, body: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """The colour inside the piece, away from its rim."""
    core = ndimage.binary_erosion(body, _SQUARE)
    inside = pixels[core if core.sum() >= 4 else body]
    return np.median(inside, axis=0)


def _fit_piece(soft: np.ndarray, body: np.ndarray, hidden: np.ndarray, colour: str) -> list[Obj]:
    overlap, obj = fit(soft, hidden, colour)
    if overlap >= MIN_OVERLAP:
        return [obj]
    parts = _split(soft, body, hidden, colour)
    return parts or [_blob(soft, colour)]


def fit(soft: np.ndarray, hidden: np.ndarray, colour: str) -> tuple[float, Obj]:
    """The outline that overlaps best with a soft mask (64, 64), and its overlap in [0, 1].

    Pixels in `hidden` belong to other objects and do not count for or against.
    """
    x, y, area = _moments(soft)
    best: tuple[float, Obj] = (-1.0, _blob(soft, colour))
    for shape in SHAPES:
        radius = np.sqrt(area / _AREA[shape])
        qr = round(radius / GRID)
        if not _MIN_QR <= qr <= _MAX_QR:
            continue
        overlap, qx, qy, qr = _climb(soft, hidden, shape, round(x / GRID), round(y / GRID), qr)
        if overlap > best[0]:
            best = overlap, Obj(shape, colour, qx * GRID, qy * GRID, qr * GRID)
    return best


def _moments(soft: np.ndarray) -> tuple[float, float, float]:
    """Centroid x and y and area of a soft mask, in pixels."""
    area = max(float(soft.sum()), 1.0)
    axis = np.arange(SIZE) + 0.5
    x = float(soft.sum(axis=0) @ axis) / area
    y = float(soft.sum(axis=1) @ axis) / area
    return float(np.clip(x, 0, SIZE)), float(np.clip(y, 0, SIZE)), area


def _climb(soft, hidden, shape: str, qx: int, qy: int, qr: int) -> tuple[float, int, int, int]:
    return _overlap(soft, hidden, shape, qx, qy, qr), qx, qy, qr


def _overlap(soft: np.ndarray, hidden: np.ndarray, shape: str, qx: int, qy: int, qr: int) -> float:
    """Soft intersection over union with one outline, at the edge softness that suits best."""
    top, left = qy // 4 - _HALF, qx // 4 - _HALF
    window = _window(_stretch(soft), top, left)
    seen = 1.0 - _window(hidden.astype(np.float32), top, left)
    outlines = _outlines(shape, qr, qx % 4, qy % 4)
    both = (np.minimum(outlines, window) * seen).sum(axis=(1, 2))
    either = (np.maximum(outlines, window) * seen).sum(axis=(1, 2))
    return float((both / np.maximum(either, 1e-6)).max())


def _window(mask: np.ndarray, top: int, left: int) -> np.ndarray:
    """The (28, 28) part of a (64, 64) mask from (top, left), zero outside the canvas."""
    out = np.zeros((2 * _HALF, 2 * _HALF), dtype=np.float32)
    y0, y1 = max(top, 0), min(top + 2 * _HALF, SIZE)
    x0, x1 = max(left, 0), min(left + 2 * _HALF, SIZE)
    out[y0 - top : y1 - top, x0 - left : x1 - left] = mask[y0:y1, x0:x1]
    return out


def _stretch(amount: np.ndarray) -> np.ndarray:
    """Coverage with its ends flattened, which takes most of the noise away."""
    return np.clip((amount - 0.12) / 0.76, 0.0, 1.0).astype(np.float32)


@lru_cache(maxsize=4096)
def _outlines(shape: str, quarter_r: int, quarter_dx: int, quarter_dy: int) -> np.ndarray:
    """An outline at each softness of SIGMAS, stretched, as (len(SIGMAS), 28, 28)."""
    sharp = _template(shape, quarter_r, quarter_dx, quarter_dy).astype(np.float32)
    out = np.stack([_stretch(ndimage.gaussian_filter(sharp, s) if s else sharp) for s in SIGMAS])
    out.setflags(write=False)
    return out


def _split(soft: np.ndarray, body: np.ndarray, hidden: np.ndarray, colour: str) -> list[Obj]:
    """Several whole objects that a piece falls into when cut at its waists, or nothing."""
    depth = ndimage.distance_transform_edt(body)
    for level in (1.5, 2.5, 3.5, 4.5):
        cores, count = ndimage.label(depth > level, _SQUARE)
        if count < 2:
            continue
        nearest = ndimage.distance_transform_edt(cores == 0, return_distances=False, return_indices=True)
        owner = cores[nearest[0], nearest[1]]
        parts = [np.where(owner == k, soft, 0.0) for k in range(1, count + 1)]
        fits = [fit(part, hidden | (body & (owner != k)), colour) for k, part in enumerate(parts, start=1)]
        if all(overlap >= MIN_OVERLAP for overlap, _ in fits):
            return [obj for _, obj in fits]
    return []


def _blob(soft: np.ndarray, colour: str) -> Obj:
    x, y, area = _moments(np.clip(soft, 0, 1))
    return Obj(BLOB, colour, x, y, float(np.sqrt(area / _AREA["circle"])))
