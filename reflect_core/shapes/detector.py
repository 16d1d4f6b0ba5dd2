"""Exact eyes for the shapes world: from a picture to the objects in it, without a trained network.

Made for pictures that a diffusion model and a small autoencoder draw: soft edges, shifted colours,
a little noise. It goes in three steps.

1. Name each pixel. A rim pixel is a mix of its object's colour and the background, so each pixel is
   fitted as background + a (colour - background) for every palette colour; the smallest residual
   names it and `a` says how much of it is covered. Nearest colour would misname rims.
2. Cut the covered area into pieces, one an object: connected, of one colour. Only solid pieces count;
   thin misnamed rims join the solid piece next to them, and pieces that touch and differ by no more
   than a shade are one object whose colour lies between two names.
3. Fit each piece. Its soft area and centroid give centre and radius for each shape in closed form;
   the outline with the best overlap names it, or 'blob' when none is good enough. A piece that no
   outline fits is cut at its waists, for two objects of one colour that touch. See `outline.py`.
4. What is left and is plainly not background, such as a grey or a pale spot, is a blob as well: a
   picture with something in it that has no name must not pass for one without.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from .outline import AREA, CLEAR, Fit, fit, moments
from .scene import BACKGROUND, COLOURS, SIZE, Obj

BLOB = "blob"
"""The shape of something that is no known shape."""
MIN_OVERLAP = 0.84
"""Least soft intersection over union with the best outline. A circle and a square of one area reach
0.83, so that a lower bound would let one pass for a bad picture of the other."""
MIN_AREA = 16.0
"""Square pixels; anything smaller is a speck and not reported. The smallest whole object has 57."""
COVERED = 0.5
"""Pixels covered by more than this belong to an object's body; less than that is its rim."""
RIM = 2.3
"""How far from the body, in pixels, coverage still counts as the object's rim."""
SHADE = 40.0
"""Touching pieces whose colours are closer than this, of 255, are one: yellow and orange are 79 apart."""
CIRCLE = 0.91
"""A circle with less overlap than this must be round: pentagons, ellipses and squares on a corner come
near to it. Disturbed circles stay above 0.90."""
ROUND = 1.13
"""A round piece's farthest pixel is at most this many times as far from its centre as the nearest one
outside it. A pentagon has 1.14 or more, an ellipse of 9 by 7 pixels too, a ring far more."""
VISIBLE = 36.0
"""Least distance from the background, of 442, at which pixels that no palette colour covers are seen."""
WAISTS = (1.5, 2.5, 3.5, 4.5)
"""Depths in pixels at which a piece that no outline fits is cut apart."""
WAIST_DEPTH = 0.9
"""Least difference in depth, in pixels, between a waist and each object that it joins."""
_NAMES = tuple(COLOURS)
_PALETTE = np.array([COLOURS[name] for name in _NAMES], dtype=np.float32)
_AXIS = np.arange(SIZE) + 0.5
_CROSS = ndimage.generate_binary_structure(2, 1)
_SQUARE = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True)
class _Piece:
    """Pixels of one object, perhaps: its body, its coverage with the rim, both (64, 64), and its colour."""

    body: np.ndarray
    soft: np.ndarray
    colour: str


def detect(picture: Image.Image | np.ndarray) -> tuple[Obj, ...]:
    """The objects in a picture, from the top downward.

    `picture` is 64 x 64 RGB, a PIL image or an array (64, 64, 3) of uint8; ValueError otherwise.
    `x`, `y` and `r` of the objects are in pixels. What is no known shape has the shape 'blob', the
    nearest palette colour, and the radius of a circle of its area.
    """
    pixels = _pixels(picture)
    background = _background(pixels)
    label, cover = _name_pixels(pixels, background)
    pieces, count = _join(*_cut(label, cover), pixels)
    if not count:
        return _unnamed(pixels - background, label, np.ones(label.shape, dtype=bool))
    distance, nearest = ndimage.distance_transform_edt(pieces == 0, return_indices=True)
    # Each rim pixel belongs to the nearest body, so that neighbours do not lend each other area.
    owner = np.where(distance <= RIM, pieces[nearest[0], nearest[1]], 0)
    parts = []
    for k in range(1, count + 1):
        body = pieces == k
        colour = _body_colour(pixels, body)
        # Measured against the colour it really has, a shifted colour still covers fully.
        direction = colour - background
        amount = ((pixels - background) @ direction) / max(float(direction @ direction), 1.0)
        soft = np.where(owner == k, amount, 0.0)
        if np.clip(soft, 0, 1).sum() >= MIN_AREA:
            parts.append(_Piece(body, soft, _NAMES[int(np.argmin(((_PALETTE - colour) ** 2).sum(axis=1)))]))
    found = [obj for part, fits in zip(parts, _fit_all(parts)) for obj in _objects(part, fits)]
    found += _unnamed(pixels - background, label, distance > RIM)
    return tuple(sorted(found, key=lambda o: (o.y, o.x)))


def _pixels(picture: Image.Image | np.ndarray) -> np.ndarray:
    """The picture as (64, 64, 3) float32 in [0, 255]."""
    if isinstance(picture, Image.Image):
        picture = np.asarray(picture.convert("RGB"))
    pixels = np.asarray(picture)
    if pixels.shape != (SIZE, SIZE, 3):
        raise ValueError(f"got a picture of shape {pixels.shape}; expected ({SIZE}, {SIZE}, 3): the detector "
                         "reads pictures of the shapes world only")
    if pixels.dtype != np.uint8:
        raise ValueError(f"got a picture of {pixels.dtype} from {pixels.min():g} to {pixels.max():g}; expected uint8 "
                         "from 0 to 255: multiply by 255 if white is 1, round, and convert with .astype(np.uint8)")
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


def _join(pieces: np.ndarray, count: int, pixels: np.ndarray) -> tuple[np.ndarray, int]:
    """The pieces (64, 64) with those made one that touch and whose colours differ by less than SHADE."""
    touching = set()
    for one, other in ((pieces[:, 1:], pieces[:, :-1]), (pieces[1:], pieces[:-1])):
        border = (one != other) & (one > 0) & (other > 0)
        touching |= set(zip(one[border].tolist(), other[border].tolist()))
    if not touching:
        return pieces, count
    colours = {k: _body_colour(pixels, pieces == k) for k in set().union(*touching)}
    names = np.arange(count + 1)
    for one, other in sorted(touching):
        if np.linalg.norm(colours[one] - colours[other]) < SHADE:
            names[names == names[one]] = names[other]
    kept, names = np.unique(names, return_inverse=True)
    return names[pieces], len(kept) - 1


def _body_colour(pixels: np.ndarray, body: np.ndarray) -> np.ndarray:
    """The colour inside the piece, away from its rim, as (3,)."""
    core = ndimage.binary_erosion(body, _SQUARE)
    return np.median(pixels[core if core.sum() >= 4 else body], axis=0)


def _fit_all(parts: Sequence[_Piece]) -> list[list[Fit]]:
    """What each piece shows: one outline, several that touch, or none.

    An object may be partly hidden behind another, but not both behind each other: so the whole ones
    are accepted first, then those that they hide.
    """
    alone = [fit(part.soft) for part in parts]
    answers: list[list[Fit]] = [[] for _ in parts]
    hidden = np.zeros((SIZE, SIZE), dtype=bool)
    waiting = sorted(range(len(parts)), key=lambda k: -_overlap(alone[k]))
    while waiting:
        for k in waiting:
            best = alone[k]
            if _overlap(best) < CLEAR and (hidden & ndimage.binary_dilation(parts[k].body, _SQUARE)).any():
                best = max(best, fit(parts[k].soft, hidden), key=_overlap)
            whole = _overlap(best) >= MIN_OVERLAP and (best.shape != "circle" or _is_round(best, parts, k))
            answers[k] = [best] if whole else _split(parts[k], hidden)
            if answers[k]:
                hidden = hidden | parts[k].body
                waiting.remove(k)
                break
        else:
            break
    return answers


def _overlap(found: Fit | None) -> float:
    return found.overlap if found else -1.0


def _is_round(circle: Fit, parts: Sequence[_Piece], k: int) -> bool:
    """Whether piece `k`, on which a circle fits best, is one: no other outline is so alike to everything."""
    if circle.overlap >= CIRCLE:
        return True
    body = parts[k].body
    neighbours = np.any([np.zeros_like(body), *(p.body for j, p in enumerate(parts) if j != k)], axis=0)
    # Where a neighbour touches it, nothing is known of its edge.
    known = ~ndimage.binary_dilation(neighbours, _SQUARE)
    distance = np.hypot(_AXIS - circle.x, _AXIS[:, None] - circle.y)
    return distance[body & known].max(initial=0.0) <= ROUND * distance[known & ~body].min(initial=SIZE)


def _objects(part: _Piece, fits: Sequence[Fit]) -> list[Obj]:
    if fits:
        return [Obj(f.shape, part.colour, f.x, f.y, f.r) for f in fits]
    x, y, area = moments(np.clip(part.soft, 0, 1))
    return [Obj(BLOB, part.colour, x, y, float(np.sqrt(area / AREA["circle"])))]


def _split(part: _Piece, hidden: np.ndarray) -> list[Fit]:
    """Several whole objects that a piece falls into when cut at its waists, or nothing."""
    soft, body = part.soft, part.body
    depth = ndimage.distance_transform_edt(body)
    for level in WAISTS:
        cores, count = ndimage.label(depth > level, _SQUARE)
        # A real waist is clearly thinner than what it joins; in a long blob depth only ripples.
        if count < 2 or min(ndimage.maximum(depth, cores, range(1, count + 1))) < level + WAIST_DEPTH:
            continue
        nearest = ndimage.distance_transform_edt(cores == 0, return_distances=False, return_indices=True)
        owner = cores[nearest[0], nearest[1]]
        fits = [fit(np.where(owner == k, soft, 0.0), hidden | (body & (owner != k))) for k in range(1, count + 1)]
        if all(_overlap(f) >= MIN_OVERLAP for f in fits):
            return fits
    return []


def _unnamed(offset: np.ndarray, label: np.ndarray, free: np.ndarray) -> tuple[Obj, ...]:
    """Blobs of what differs from the background without being covered by a palette colour.

    `offset` (64, 64, 3) is the difference from the background; `free` (64, 64) is where no object is.
    Each has the colour of which it is most plausibly a tint.
    """
    visible = free & ((offset**2).sum(axis=2) > VISIBLE**2)
    if visible.sum() < MIN_AREA:
        return ()
    # Noise and the ringing of JPEG change sign from pixel to pixel; what is really there does not.
    smooth = ndimage.uniform_filter(offset, (3, 3, 0))
    regions, count = ndimage.label(free & ((smooth**2).sum(axis=2) > VISIBLE**2), _CROSS)
    blobs = []
    for k in np.unique(regions[ndimage.binary_erosion(regions > 0, _SQUARE)]):
        region = visible & (regions == k)
        if region.sum() >= MIN_AREA:
            x, y, area = moments(region.astype(np.float32))
            colour = _NAMES[np.bincount(label[region]).argmax()]
            blobs.append(Obj(BLOB, colour, x, y, float(np.sqrt(area / AREA["circle"]))))
    return tuple(blobs)
