"""Flawed scenes made from right ones: the kinds of mistakes that a small model makes.

Corruptions cost nothing and come in any number, so they carry most of a corrector's training; the
base's own failures are mixed in.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Sequence

import numpy as np

from .prompt import Requirement
from .sample import SEEN_PAIRS, place
from .scene import Obj, Scene

FLAWS = ("drop", "extra", "recolour", "reshape", "displace", "swap")


def corrupt(scene: Sequence[Obj], requirement: Requirement, rng: np.random.Generator,
            flaws: int = 1) -> Scene:
    """The scene with up to `flaws` random flaws. What they break, if anything, is for the judge to say:
    another colour is no flaw where the prompt names none."""
    objects = list(scene)
    kinds = list(FLAWS if requirement.relations else FLAWS[:4])
    for _ in range(flaws):
        _one_flaw(kinds[rng.integers(len(kinds))], objects, rng)
    return tuple(objects)


def _one_flaw(kind: str, objects: list[Obj], rng: np.random.Generator) -> None:
    k = int(rng.integers(len(objects))) if objects else 0
    if kind == "extra" or not objects:
        # Extra objects often repeat one that is there, as a model that counts badly does.
        twin = objects and rng.random() < 0.5
        colour, shape = (objects[k].colour, objects[k].shape) if twin else SEEN_PAIRS[rng.integers(len(SEEN_PAIRS))]
        new = place(shape, colour, objects, rng, len(objects) + 1)
        if new is not None and len(objects) < 7:
            objects.insert(int(rng.integers(len(objects) + 1)), new)
    elif kind == "drop":
        objects.pop(k)
    elif kind == "recolour":
        objects[k] = replace(objects[k], colour=_other(objects, k, rng, 0))
    elif kind == "reshape":
        objects[k] = replace(objects[k], shape=_other(objects, k, rng, 1))
    elif kind == "displace":
        obj = objects[k]
        new = place(obj.shape, obj.colour, objects[:k] + objects[k + 1 :], rng, len(objects), radius=obj.r)
        objects[k] = new or obj
    elif len(objects) > 1:
        # Two objects trade their looks: 'left of' becomes 'right of', attributes change hands.
        j = int(rng.choice([i for i in range(len(objects)) if i != k]))
        a, b = objects[k], objects[j]
        both = rng.random() < 0.6
        objects[k] = replace(a, colour=b.colour, shape=b.shape if both else a.shape)
        objects[j] = replace(b, colour=a.colour, shape=a.shape if both else b.shape)
        if any((o.colour, o.shape) not in SEEN_PAIRS for o in (objects[k], objects[j])):
            objects[k], objects[j] = a, b


def _other(objects: Sequence[Obj], k: int, rng: np.random.Generator, axis: int) -> str:
    """Another colour (axis 0) or shape (axis 1) for object k, half the time one from its neighbours."""
    obj = objects[k]
    options = [pair[axis] for pair in SEEN_PAIRS if pair[1 - axis] == (obj.shape, obj.colour)[axis]]
    near = [(o.colour, o.shape)[axis] for o in objects if o is not obj]
    options = [o for o in options if o != (obj.colour, obj.shape)[axis]]
    near = [o for o in near if o in options]
    pool = near if near and rng.random() < 0.5 else options
    return pool[rng.integers(len(pool))]
