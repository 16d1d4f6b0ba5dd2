"""CLIPScore (Hessel et al. 2021, arXiv 2104.08718, eq. 1): how well a picture goes with a text, by CLIP or SigLIP.

With CLIP: 2.5 * max(cos, 0), above 1 cut to 1, and the text is read after the words "A photo depicts", as in the paper
(its model is ViT-B/32; larger ones are better judges). With SigLIP (arXiv 2303.15343): sigmoid(scale * cos + bias), the
model's own probability that the two belong together, of the plain text. Both are weak on counts, places and which
colour belongs to what.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ...types import Picture
from .encoder import Encoder, Encoders
from .reward import Reward, cosines
from .verdicts import sigmoid

WEIGHT = 2.5
PREFIX = "A photo depicts"


class ClipScore(Reward):
    """See the module; `raw` is the cosine.

    Args: prefix, words before the prompt; None (the default): the paper's with CLIP, none with SigLIP.
    """

    name = "CLIPScore"

    def __init__(self, encoder: Encoder, threshold: float | None = None, prefix: str | None = None) -> None:
        super().__init__(encoder, threshold)
        self.prefix = (PREFIX if encoder.kind == "clip" else "") if prefix is None else prefix

    @classmethod
    def from_folder(cls, folder: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu",
                    threshold: float | None = None, *, prefix: str | None = None, processor: str | Path | None = None,
                    batch: int = 16, shared: Encoders | None = None) -> ClipScore:
        """Of a folder as it is published, e.g. openai/clip-vit-large-patch14; the rest as in `Encoder.from_folder`."""
        encoder = Encoder.from_folder(folder, dtype, device, processor=processor, batch=batch, shared=shared)
        return cls(encoder, threshold, prefix)

    def raw(self, prompt: str, pictures: Sequence[Picture]) -> tuple[list[float], str]:
        return cosines(self.encoder, f"{self.prefix.rstrip()} {prompt}" if self.prefix.strip() else prompt, pictures)

    def score(self, raw: float) -> float:
        if self.encoder.kind == "clip":
            return min(WEIGHT * max(raw, 0.0), 1.0)
        return sigmoid(self.encoder.scale * raw + self.encoder.bias)
