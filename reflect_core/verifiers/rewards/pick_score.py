"""PickScore (Kirstain et al. 2023, arXiv 2305.01569): which picture people would pick for a text, by a tuned CLIP-H.

The model's number is scale * cos, about 17 to 24. It was trained so that of two pictures the first is picked with the
probability sigmoid(a - b). The score in [0, 1] is therefore the probability that the picture is picked over one with
the number `reference`. It says what is liked, and not what is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ...generators.checking import is_number
from ...types import Picture, UserError
from .encoder import Encoder, Encoders
from .reward import Reward, cosines
from .verdicts import sigmoid

REFERENCE = 21.0
"""About what a picture of a present-day model gets; where the score is 0.5."""


class PickScore(Reward):
    """See the module; `raw` is scale * cos."""

    name = "PickScore"

    def __init__(self, encoder: Encoder, threshold: float | None = None, reference: float = REFERENCE) -> None:
        super().__init__(encoder, threshold)
        if encoder.kind != "clip":
            raise UserError(f"PickScore got a model of the kind {encoder.kind!r}; expected CLIP's; try "
                            "yuvalkirstain/PickScore_v1")
        if not is_number(reference):
            raise UserError(f"reference is {reference!r}; expected a number, such as {REFERENCE}")
        self.reference = float(reference)

    @classmethod
    def from_folder(cls, folder: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu",
                    threshold: float | None = None, *, reference: float = REFERENCE,
                    processor: str | Path | None = None, batch: int = 16, shared: Encoders | None = None) -> PickScore:
        """Of the folder of yuvalkirstain/PickScore_v1; the rest as in `Encoder.from_folder`."""
        encoder = Encoder.from_folder(folder, dtype, device, processor=processor, batch=batch, shared=shared)
        return cls(encoder, threshold, reference)

    def raw(self, prompt: str, pictures: Sequence[Picture]) -> tuple[list[float], str]:
        values, note = cosines(self.encoder, prompt, pictures)
        return [self.encoder.scale * value for value in values], note

    def score(self, raw: float) -> float:
        return sigmoid(raw - self.reference)
