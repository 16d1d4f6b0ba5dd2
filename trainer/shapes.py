"""What the trainer takes from the shapes world: scenes to learn from, flaws and their repairs, a judge."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from reflect_core.shapes.corrupt import corrupt
from reflect_core.shapes.detector import detect
from reflect_core.shapes.evaluation import evaluation_prompts, is_held_out
from reflect_core.shapes.prompt import Requirement, parse
from reflect_core.shapes.repair import apply, plan, words
from reflect_core.shapes.sample import (
    TASKS,
    sample_prompt,
    sample_requirement,
    sample_scene,
    sample_sentence,
)
from reflect_core.shapes.scene import COLOURS, SHAPES, SIZE, Obj, Scene, fits, render_array

from .triplets import MARKER, Triplet

MOST_TOLD = 3
"""Flaws that one reflection speaks of; a picture with more is corrected in several rounds."""


def task_weights(weights: dict[str, float] | None) -> np.ndarray:
    """Chances of the tasks (7,); one that is not named has weight 1."""
    values = np.array([(weights or {}).get(task, 1.0) for task in TASKS], dtype=float)
    return values / values.sum()


def random_pictures(count: int, seed: int) -> np.ndarray:
    """Rendered training scenes as (count, 64, 64, 3) uint8."""
    rng = np.random.default_rng(seed)
    scenes = (sample_scene(sample_requirement(TASKS[k % len(TASKS)], rng), rng) for k in range(count))
    return np.stack([render_array(scene) for scene in scenes])


def captioned(count: int, seed: int, weights: dict[str, float] | None) -> tuple[np.ndarray, list[list[str]]]:
    """`count` pictures (count, 64, 64, 3) and two captions of each."""
    rng = np.random.default_rng(seed)
    chances = task_weights(weights)
    pictures = np.empty((count, 64, 64, 3), dtype=np.uint8)
    texts = []
    for k in range(count):
        task = TASKS[rng.choice(len(TASKS), p=chances)]
        prompt, requirement = sample_prompt(task, rng)
        pictures[k] = render_array(sample_scene(requirement, rng))
        texts.append([prompt, _same_meaning(task, requirement, rng)])
    return pictures, texts


def sentences(count: int, seed: int) -> tuple[list[str], list[str]]:
    """`count` prompts of all tasks, and the same with a reflection behind the marker, as a corrector hears it."""
    rng = np.random.default_rng(seed)
    prompts, told = [], []
    for k in range(count):
        prompt, requirement = sample_prompt(TASKS[k % len(TASKS)], rng)
        flawed = corrupt(sample_scene(requirement, rng), requirement, rng, int(rng.integers(1, 1 + MOST_TOLD)))
        reflection = words(plan(flawed, requirement), requirement)
        prompts.append(prompt)
        told.append(f"{prompt} {MARKER} {reflection}" if reflection else prompt)
    return prompts, told


def prompts_and_feedback(count: int, seed: int) -> list[str]:
    """Texts of both kinds by turns, each alone, as Reflect-DiT's encoder hears them."""
    prompts, told = sentences(count, seed)
    return [text.partition(f"{MARKER} ")[2] or text if k % 2 else prompt
            for k, (prompt, text) in enumerate(zip(prompts, told))]


PHRASES = ("", *(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES))
"""What can lie at a place of a picture, nothing first."""


def twins(count: int, seed: int, weights: dict[str, float] | None, side: int
          ) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """`count` scenes, each beside a corrupted twin that its caption is wrong of.

    Returns pictures (count, 64, 64, 3) of the scenes and of the twins, what lies at each of side x side places of
    either as indices of PHRASES (count, 2, side * side), and the captions.
    """
    rng = np.random.default_rng(seed)
    chances = task_weights(weights)
    good, bad = (np.empty((count, SIZE, SIZE, 3), dtype=np.uint8) for _ in range(2))
    lies, captions = np.empty((count, 2, side * side), dtype=np.int64), []
    while len(captions) < count:
        prompt, requirement = sample_prompt(TASKS[rng.choice(len(TASKS), p=chances)], rng)
        scene = sample_scene(requirement, rng)
        twin = corrupt(scene, requirement, rng, int(rng.integers(1, 3)))
        if plan(twin, requirement):
            k = len(captions)
            good[k], bad[k] = render_array(scene), render_array(twin)
            lies[k] = _lying(scene, side), _lying(twin, side)
            captions.append(prompt)
    return good, bad, lies, captions


def _lying(scene: Sequence[Obj], side: int) -> np.ndarray:
    """Indices of PHRASES (side * side), row by row: the object whose middle is nearest, if it reaches there."""
    middles = (np.arange(side) + 0.5) * SIZE / side
    lies, nearest = np.zeros((side, side), dtype=np.int64), np.full((side, side), np.inf)
    for obj in scene:
        distance = np.hypot(middles[None, :] - obj.x, middles[:, None] - obj.y)
        here = (distance < obj.r + 1) & (distance < nearest)
        lies[here], nearest[here] = PHRASES.index(obj.words), distance[here]
    return lies.ravel()


def _same_meaning(task: str, requirement: Requirement, rng: np.random.Generator) -> str:
    """Another sentence with the same meaning that is not held out."""
    while True:
        text = sample_sentence(requirement, rng)
        if not is_held_out(task, text):
            return text


FLAWS, CHANCES = (1, 2, 3, 4, 5), (0.35, 0.3, 0.2, 0.1, 0.05)
"""Flaws that are put into a scene, and how often as many."""


def corrupted_triplets(seed: int, count: int, tasks: dict[str, float] | None = None, tries: int = 1
                       ) -> Iterator[Triplet]:
    """Triplets from corrupted scenes: 1 to 5 flaws each, of which up to three are told and mended.

    `tries` of each prompt follow one another. Of every other prompt they are scenes of their own; of the rest each is
    what an imperfect correction made of the one before: some of its flaws are mended, and there may be a new one.
    """
    return itertools.islice(_corrupted(seed, tasks, tries), count)


def _corrupted(seed: int, tasks: dict[str, float] | None, tries: int) -> Iterator[Triplet]:
    rng = np.random.default_rng(seed)
    chances = task_weights(tasks)
    while True:
        task = TASKS[rng.choice(len(TASKS), p=chances)]
        prompt, requirement = sample_prompt(task, rng)
        series, scene = tries > 1 and rng.random() < 0.5, None
        for _ in range(tries):
            if scene is None or not series:
                scene = corrupt(sample_scene(requirement, rng), requirement, rng, int(rng.choice(FLAWS, p=CHANCES)))
            else:
                scene = _half_mended(scene, requirement, rng)
            triplet = mend(prompt, requirement, scene, render_array(scene), rng)
            if triplet is not None:
                yield triplet


def _half_mended(scene: Scene, requirement: Requirement, rng: np.random.Generator) -> Scene:
    """The scene with some of its flaws mended and, one time in three, a new one."""
    fixes = plan(scene, requirement)
    some = [fix for fix in fixes if rng.random() < 0.5]
    better = apply(scene, requirement, some, rng) or scene
    return corrupt(better, requirement, rng) if rng.random() < 1 / 3 else better


def mend(prompt: str, requirement: Requirement, objects: tuple[Obj, ...], picture: np.ndarray,
         rng: np.random.Generator) -> Triplet | None:
    """The triplet of a flawed picture in which `objects` are seen. None if nothing is wrong or no
    mended scene was found."""
    fixes = plan(objects, requirement)[:MOST_TOLD]
    if not fixes:
        return None
    good = apply(objects, requirement, fixes, rng)
    if good is None or any(o.shape == "blob" for o in good):
        return None
    target = render_array(good)
    # Objects of a drawn picture may touch or leave the canvas; what the judge would misread teaches nothing.
    apart = all(fits(o, [other for other in good if other is not o]) for o in good)
    if not apart and _looks(detect(target)) != _looks(good):
        return None
    return Triplet(prompt, words(fixes, requirement, MOST_TOLD), picture, target)


def _looks(objects: Sequence[Obj]) -> Counter[str]:
    return Counter(o.words for o in objects)


def drawn_figures(draw: Callable[[list[str]], np.ndarray], count: int) -> tuple[list[np.ndarray], dict[str, float]]:
    """Held-out prompts drawn, `count` of each task: the pictures of each, and what the detector says of them."""
    rows, rates, blobs, seen = [], {}, 0, 0
    for task in TASKS:
        prompts = [p.prompt for p in evaluation_prompts(task, unseen=False)][:count]
        drawn = draw(prompts)
        found = [detect(picture) for picture in drawn]
        rates[task] = float(np.mean([not plan(f, parse(p)) for f, p in zip(found, prompts)]))
        blobs += sum(any(o.shape == "blob" for o in f) for f in found)
        seen += len(found)
        rows.append(drawn)
    return rows, {**rates, "overall": float(np.mean(list(rates.values()))), "malformed": blobs / seen}


def is_right(picture: np.ndarray, prompt: str) -> bool:
    """Whether the detector finds nothing to mend."""
    return not plan(detect(picture), parse(prompt))


def correction_figures(triplets: Sequence[Triplet], drawn: Sequence[np.ndarray]) -> dict[str, float]:
    """How well flawed pictures were corrected.

    fix_rate: share of the pictures in which nothing is wrong any more. kept: share of the objects that
    were right in the flawed picture and stand in the corrected one as they did.
    """
    fixed, kept = [], []
    for triplet, picture in zip(triplets, drawn):
        seen, wanted = detect(picture), detect(triplet.good)
        fixed.append(is_right(picture, triplet.prompt))
        stay = [o for o in detect(triplet.flawed) if any(_same(o, w) for w in wanted)]
        kept += [any(_same(o, s) for s in seen) for o in stay]
    return {"fix_rate": float(np.mean(fixed)), "kept": float(np.mean(kept)) if kept else 1.0}


def _same(a: Obj, b: Obj, pixels: float = 3.0) -> bool:
    """Whether two objects look alike and stand in the same place."""
    return (a.shape, a.colour) == (b.shape, b.colour) and abs(a.x - b.x) <= pixels and abs(a.y - b.y) <= pixels
