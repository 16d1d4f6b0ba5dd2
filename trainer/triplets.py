"""Triplets (flawed picture, reflection, good picture): where a corrector's training data comes from.

A folder of one's own pictures is a `triplets.jsonl` with a line for each triplet,

    {"prompt": "a cat on a mat", "reflection": "remove the second cat", "flawed": "bad/1.png", "good": "good/1.png"}

with paths relative to the folder. The shapes world makes its own: right scenes are corrupted, or the
base draws and the detector sees what it drew, and the smallest change that satisfies the prompt is
rendered, so that the corrector learns to keep what was right.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from reflect_core.shapes.corrupt import corrupt
from reflect_core.shapes.prompt import Requirement
from reflect_core.shapes.repair import apply, plan, words
from reflect_core.shapes.sample import TASKS, sample_prompt, sample_scene
from reflect_core.shapes.scene import Obj, render_array
from reflect_core.types import UserError

from .bank import task_weights

MOST_TOLD = 3
"""Flaws that one reflection speaks of; a picture with more is corrected in several rounds."""


@dataclass(frozen=True)
class Triplet:
    """Pictures are (H, W, 3) uint8."""

    prompt: str
    reflection: str
    flawed: np.ndarray
    good: np.ndarray


def read_triplets(folder: Path, size: int) -> Iterator[Triplet]:
    """The triplets of a folder, pictures resized to size x size (bicubic).

    Raises `UserError` that names the line or the picture that cannot be used.
    """
    file = folder / "triplets.jsonl"
    if not file.is_file():
        raise UserError(f"{folder} has no triplets.jsonl; expected one JSON object a line with the keys "
                        "prompt, reflection, flawed, good")
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            prompt, reflection, flawed, good = (entry[k] for k in ("prompt", "reflection", "flawed", "good"))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f"{file}, line {number}: {error!r}; expected an object with prompt, reflection, "
                            "flawed, good") from error
        yield Triplet(prompt, reflection, _read(folder / flawed, size), _read(folder / good, size))


def _read(path: Path, size: int) -> np.ndarray:
    try:
        with Image.open(path) as image:
            picture = image.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"cannot read the picture {path}: {error}. Replace it or take its line out of "
                        "triplets.jsonl") from error
    if picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def corrupted_triplets(seed: int, tasks: dict[str, float] | None = None) -> Iterator[Triplet]:
    """Endless triplets from corrupted scenes: 1 to 5 flaws each, of which up to three are told and mended."""
    rng = np.random.default_rng(seed)
    chances = task_weights(tasks)
    while True:
        task = TASKS[rng.choice(len(TASKS), p=chances)]
        prompt, requirement = sample_prompt(task, rng)
        flawed = corrupt(sample_scene(requirement, rng), requirement, rng,
                         int(rng.choice([1, 2, 3, 4, 5], p=[0.35, 0.3, 0.2, 0.1, 0.05])))
        triplet = mend(prompt, requirement, flawed, render_array(flawed), rng)
        if triplet is not None:
            yield triplet


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
    return Triplet(prompt, words(fixes, requirement, MOST_TOLD), picture, render_array(good))
