"""What a base learns from corrections: to heed instructions.

FLUX.1-dev has drawn what all kinds of English sentences say; a base that was trained here on captions alone has never
had a use for 'change the left red star to blue', and a LoRA that does not touch its words cannot teach it. So a share
of a base's own steps may be corrections of corrupted scenes, the flawed picture in view as the corrector will see it
(extra tokens at time 0), by the base's weights and without a LoRA.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from reflect_core.generators.flux_corrector.lora import ConditionLora
from reflect_core.generators.flux_corrector.options import CorrectorOptions
from reflect_core.generators.flux_corrector.pipeline import FluxCorrector
from reflect_core.types import Pair, Request

from ..shapes import corrupted_triplets
from ..triplets import Triplet

SEED = 77
"""Added to the run's seed for the triplets that are trained on, and twice for those that are held out."""
_AT_ONCE = 2048


def encode_edits(latents: Callable[[np.ndarray], Tensor], tokens: Callable[[list[str]], tuple[Tensor, Tensor]],
                 count: int, seed: int, tasks: dict[str, float] | None) -> dict[str, Tensor]:
    """Latent tokens (S, N, C) of flawed and good pictures and the ids of the texts, CLIP's (S, 77) of the prompt
    and T5's (S, L) with the reflection."""
    triplets = corrupted_triplets(seed + SEED, count, tasks)
    parts: list[dict[str, Tensor]] = []
    while chunk := list(itertools.islice(triplets, _AT_ONCE)):
        parts.append({
            "edit_flawed": latents(np.stack([t.flawed for t in chunk])),
            "edit_good": latents(np.stack([t.good for t in chunk])),
            "edit_clip": tokens([t.prompt for t in chunk])[0].short(),
            "edit_t5": tokens([t.told for t in chunk])[1].short()})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def held_out_edits(count: int, seed: int, tasks: dict[str, float] | None) -> list[Triplet]:
    """Triplets that are never trained on."""
    return list(corrupted_triplets(seed + 2 * SEED, count, tasks))


def correct_alone(parts: dict, triplets: list[Triplet], offset: tuple[int, int], length: int,
                  guidance: float) -> list[np.ndarray]:
    """The flawed pictures as the base alone draws them anew, under a LoRA that changes nothing."""
    side = len(triplets[0].good)
    lora = ConditionLora.fresh(parts["transformer"], 1, None, generator=torch.Generator().manual_seed(0))
    generator = FluxCorrector(**parts, lora=lora, options=CorrectorOptions(
        condition_size=side, condition_offset=offset, max_sequence_length=length, posterior="mode", max_batch=32))
    return [np.asarray(d.picture) for d in generator.draw([
        Request(t.prompt, 1000 + k, side, side, 16, guidance, (Pair(t.reflection, picture=Image.fromarray(t.flawed)),))
        for k, t in enumerate(triplets)])]
