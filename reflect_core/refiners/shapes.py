"""The refiner of the shapes world: the same request in other words (prompt-level scaling)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from ..shapes.prompt import OPPOSITE, Requirement, parse
from ..shapes.sample import sample_sentence
from ..types import Picture, Verdict

TRIES = 40
"""Sentences drawn in search of one that differs from the present one."""


class ShapesRefiner:
    """Rewrites a prompt as another sentence of the grammar that asks for the same picture.

    The opening, the order of the phrases and the side from which a relation is told change; what is
    required never does, since every sentence is made anew from the user's prompt. The same prompt,
    present sentence and picture give the same answer, in whatever order branches are refined.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def refine(self, prompt: str, currents: Sequence[str], pictures: Sequence[Picture],
               verdicts: Sequence[Verdict], reflections: Sequence[str]) -> list[str]:
        """The next sentence for each branch. Raises `UserError` for a prompt that is not of the grammar,
        ValueError for another number of sentences than of pictures."""
        if len(currents) != len(pictures):
            raise ValueError(f"got {len(currents)} sentences for {len(pictures)} pictures; expected one for each")
        requirement = parse(prompt)
        return [self._another(requirement, prompt, current, picture) for current, picture in zip(currents, pictures)]

    def _another(self, requirement: Requirement, prompt: str, current: str, picture: Picture) -> str:
        pixels = hashlib.sha256(picture.convert("RGB").tobytes()).hexdigest()
        digest = hashlib.sha256(f"{self.seed}|{prompt}|{current}|{pixels}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        for _ in range(TRIES):
            text = sample_sentence(reworded(requirement, rng), rng, carrier=0.6)
            if text != current:
                return text
        return current


def reworded(requirement: Requirement, rng: np.random.Generator) -> Requirement:
    """The same requirement with its groups in another order and relations told from either side."""
    order = [int(k) for k in rng.permutation(len(requirement.groups))]
    groups = tuple(requirement.groups[k] for k in order)
    relations = []
    for i, relation, j in requirement.relations:
        i, j = order.index(i), order.index(j)
        if rng.random() < 0.5:
            i, relation, j = j, OPPOSITE[relation], i
        relations.append((i, relation, j))
    return Requirement(groups, tuple(relations[k] for k in rng.permutation(len(relations))))
