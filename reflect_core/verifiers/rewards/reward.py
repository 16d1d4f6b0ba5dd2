"""What the rewards over CLIP and SigLIP have in common: an encoder, a raw value for each picture, a threshold."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from ...types import Picture, Verdict
from .encoder import Encoder
from .verdicts import checked_threshold, verdict


class Reward(ABC):
    """A verifier whose verdict is a number. `details` has the `reward` by name and `raw`, what its model gave.

    Args: threshold, the score in [0, 1] from which on a picture is accepted; None (the default): never. A reward says
    that one picture is better than another, and not that it is right.
    """

    name: str

    def __init__(self, encoder: Encoder, threshold: float | None = None) -> None:
        self.encoder, self.threshold = encoder, checked_threshold(threshold)

    @property
    def parts(self):
        """What a memory manager moves, see `generators.places`."""
        return self.encoder.parts

    @property
    def places(self):
        return self.encoder.places

    @abstractmethod
    def raw(self, prompt: str, pictures: Sequence[Picture]) -> tuple[list[float], str]:
        """The model's number for each picture, and a note on how the prompt was read, or ''."""

    @abstractmethod
    def score(self, raw: float) -> float:
        """The number as a score in [0, 1]; never lower for a higher number."""

    def judge(self, prompt: str, pictures: Sequence[Picture]) -> list[Verdict]:
        with self.places.turn():
            raws, note = self.raw(prompt, pictures)
        return [verdict(self.name, raw, self.score(raw), self.threshold, note) for raw in raws]


def cosines(encoder: Encoder, text: str, pictures: Sequence[Picture]) -> tuple[list[float], str]:
    """The cosine of the text with each picture, and the note on what of the text was cut off."""
    words, note = encoder.text(text)
    return (encoder.pictures(pictures).double() @ words.double()).tolist(), note
