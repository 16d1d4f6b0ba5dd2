"""Sampling: prompts of the seven tasks, and scenes that satisfy a requirement.

The first six tasks follow GenEval; `compose` mixes counts, colours and one relation over three to
six objects, which a small base model almost never gets right at once.
"""

from __future__ import annotations

from typing import Sequence

import numpy as np

from .held_out import is_held_out
from .prompt import ADJECTIVES, NOUNS, RELATIONS, Group, Requirement, holds, sentence
from .scene import (
    COLOURS,
    GAP,
    MAX_RADIUS,
    MIN_RADIUS,
    REACH,
    REACH_MOST,
    SHAPES,
    SIZE,
    SPACE,
    UNSEEN_PAIRS,
    Obj,
    Scene,
    fits,
    snap,
)

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr", "compose")
COLOUR_NAMES = tuple(COLOURS)
SEEN_PAIRS = tuple((c, s) for c in COLOURS for s in SHAPES if (c, s) not in UNSEEN_PAIRS)
COMPOSE_COUNTS = ((1, 2), (1, 1, 1), (1, 3), (2, 2), (1, 1, 2), (1, 2, 2), (1, 1, 3), (2, 3),
                  (1, 2, 3), (2, 2, 2))
"""Objects per phrase in `compose`: three to six in two or three phrases."""


def _distinct_pairs(rng: np.random.Generator, count: int, pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return [pairs[k] for k in rng.permutation(len(pairs))[:count]]


def sample_requirement(task: str, rng: np.random.Generator, pairs: Sequence[tuple[str, str]] = SEEN_PAIRS,
                       compose: Sequence[Sequence[int]] = COMPOSE_COUNTS) -> Requirement:
    """What a prompt of the task asks for. `pairs` are the (colour, shape) pairs that may be named, `compose`
    the numbers of objects per phrase in that task."""
    shapes = [SHAPES[k] for k in rng.permutation(len(SHAPES))]
    relation = RELATIONS[rng.integers(len(RELATIONS))]
    if task == "single_object":
        return Requirement((Group(1, None, shapes[0]),))
    if task == "two_object":
        return Requirement((Group(1, None, shapes[0]), Group(1, None, shapes[1])))
    if task == "counting":
        return Requirement((Group(int(rng.integers(2, 5)), None, shapes[0]),))
    if task == "colors":
        return Requirement((Group(1, *pairs[rng.integers(len(pairs))]),))
    if task == "position":
        return Requirement((Group(1, None, shapes[0]), Group(1, None, shapes[1])), ((0, relation, 1),))
    if task == "color_attr":
        while True:
            (c1, s1), (c2, s2) = _distinct_pairs(rng, 2, pairs)
            if c1 != c2 and s1 != s2:
                return Requirement((Group(1, c1, s1), Group(1, c2, s2)))
    if task == "compose":
        counts = compose[rng.integers(len(compose))]
        counts = [counts[k] for k in rng.permutation(len(counts))]
        groups = [Group(n, *pair) for n, pair in zip(counts, _distinct_pairs(rng, len(counts), pairs))]
        return Requirement(tuple(groups), ((0, relation, 1),))
    raise ValueError(f"got task {task!r}; expected one of {', '.join(TASKS)}")


def with_carrier(text: str, rng: np.random.Generator) -> str:
    """The sentence behind an opening such as 'a simple drawing of'."""
    article = ("a", "one")[rng.integers(2)]
    noun = NOUNS[rng.integers(len(NOUNS))]
    adjective = (*ADJECTIVES, "")[rng.integers(len(ADJECTIVES) + 1)]
    if not adjective and article == "a" and noun[0] in "aeiou":
        article = "an"
    return " ".join(word for word in (article, adjective, noun, "of", text) if word)


def sample_sentence(requirement: Requirement, rng: np.random.Generator, carrier: float = 0.4) -> str:
    """A sentence for the requirement, now and then with a carrier or 'one' for 'a'."""
    text = sentence(requirement)
    if rng.random() < 0.15 and text.split()[0] in ("a", "an"):
        text = "one " + text.split(" ", 1)[1]
    return with_carrier(text, rng) if rng.random() < carrier else text


def sample_prompt(task: str, rng: np.random.Generator, held_out: bool = False,
                  pairs: Sequence[tuple[str, str]] = SEEN_PAIRS,
                  compose: Sequence[Sequence[int]] = COMPOSE_COUNTS) -> tuple[str, Requirement]:
    """A prompt that belongs to training, or (held_out) one that training never draws."""
    while True:
        requirement = sample_requirement(task, rng, pairs, compose)
        text = sample_sentence(requirement, rng)
        if is_held_out(task, text) == held_out:
            return text, requirement


def _draw_radius(rng: np.random.Generator, objects: int) -> float:
    high = MAX_RADIUS if objects <= 4 else 9.5
    return snap(rng.uniform(MIN_RADIUS + 0.5, high))


def place(shape: str, colour: str, others: Sequence[Obj], rng: np.random.Generator, objects: int = 1,
          accept=lambda obj: True, radius: float | None = None,
          gaps: tuple[float, float] = (SPACE, GAP), tries: int = 60) -> Obj | None:
    """A new object at a random free place that `accept` likes, or None when none is found.

    `radius` fixes the nominal radius in pixels; otherwise it is drawn, and small in the later half of the
    tries. `gaps` is the least empty space to the others in the earlier and in the later tries, in pixels.
    """
    for attempt in range(tries):
        late = attempt > tries // 2
        r = radius if radius is not None else _draw_radius(rng, objects)
        if radius is None and late:
            r = MIN_RADIUS + 0.5
        edge = (REACH["circle"] if shape == "circle" else REACH_MOST) * r + 0.5
        x, y = (snap(v) for v in rng.uniform(edge, SIZE - edge, size=2))
        obj = Obj(shape, colour, x, y, r)
        if fits(obj, others, gaps[late]) and accept(obj):
            return obj
    return None


def sample_scene(requirement: Requirement, rng: np.random.Generator,
                 pairs: Sequence[tuple[str, str]] = SEEN_PAIRS, gap: float = SPACE) -> Scene:
    """A random scene that shows exactly what is required, its objects at least `gap` pixels apart.
    Colours left open are drawn from `pairs`."""
    while True:
        scene = _try_scene(requirement, rng, pairs, gap)
        if scene is not None:
            return scene


def _try_scene(requirement: Requirement, rng: np.random.Generator, pairs, gap: float) -> Scene | None:
    placed: list[tuple[int, Obj]] = []
    slots = [k for k, group in enumerate(requirement.groups) for _ in range(group.count)]
    one_colour = rng.random() < 0.5
    group_colour: dict[int, str] = {}
    for k in [slots[i] for i in rng.permutation(len(slots))]:
        group = requirement.groups[k]
        colour = group.colour or (group_colour.get(k) if one_colour else None)
        if colour is None:
            options = [c for c, s in pairs if s == group.shape]
            colour = options[rng.integers(len(options))]
        group_colour.setdefault(k, colour)
        accept = relation_test(requirement, k, placed)
        obj = place(group.shape, colour, [o for _, o in placed], rng, requirement.objects, accept, gaps=(gap, gap))
        if obj is None:
            return None
        placed.append((k, obj))
    order = rng.permutation(len(placed))
    return tuple(placed[i][1] for i in order)


def relation_test(requirement: Requirement, group: int, placed: Sequence[tuple[int, Obj]]):
    """A test for objects of `group`: do they stand right to all (group index, object) so far?"""

    def accept(obj: Obj) -> bool:
        for i, relation, j in requirement.relations:
            if i == group and not all(holds(relation, obj, o) for k, o in placed if k == j):
                return False
            if j == group and not all(holds(relation, o, obj) for k, o in placed if k == i):
                return False
        return True

    return accept
