"""The context transformer taught by itself, before the reflection tuning: what does the mended picture have, and where?

A linear layer reads off each place's token, as it comes out of the context transformer, the mended picture's latents at
that place. So it learns in minutes to find the object that the feedback speaks of and to write down what becomes of it:
through SANA, its noise and its attention, little of that error reaches it. The paper has no such part: its picture
encoder and its language model had seen billions of pictures and texts before. SANA stays as it is, the last gain stays
zero, and the linear layer is thrown away: the result is a checkpoint from which reflection tuning starts as it does in
the paper.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ...pictures import at_once, save_sheet, to_pictures
from ...shapes import correction_figures
from ...triplets import Triplet
from ..common import autocast
from .context import laid, told_forward
from .guide import own_places
from .reflect import ReflectTask

SHOWN_AT = 900.0
"""Time step of what is shown and counted: where a picture's objects are settled."""


class TellTask(ReflectTask):
    """Trains the context alone. See `loop.Task`."""

    def _load(self) -> str:
        found = super()._load()
        self.transformer.requires_grad_(False)
        self.context.reflection_norm.requires_grad_(False)
        patch, channels = self.transformer.config.patch_size, self.transformer.config.in_channels
        self.head = nn.Linear(self.context.reflection_norm.weight.shape[0], channels * patch**2)
        nn.init.zeros_(self.head.weight), nn.init.zeros_(self.head.bias)
        self.head.to(self.config.device)
        self.told = torch.compile(told_forward, dynamic=False) if self.config.compile else told_forward
        return found

    def named_parameters(self):
        yield from ((name, p) for name, p in self.context.named_parameters("context") if p.requires_grad)
        yield from self.head.named_parameters("head")

    def loss(self, step: int, generator: torch.Generator) -> Tensor:
        n, m, bank, device = self.config.batch, self.m, self.bank, self.config.device
        last = self.rows[torch.randint(len(self.rows), (n,), generator=generator)]
        pairs = int(torch.randint(1, m.pairs + 1, (1,), generator=generator))
        context = [self._pairs(int(row), pairs, generator) for row in last]
        t = torch.sigmoid(torch.randn(n, generator=generator) + m.time_mean)
        lengths = [[self.lengths[k] for k in row] for row in context]
        with autocast(self.config):
            given = self._beside(context, lengths, ["both"] * n)[:4]
            told = self._tell(self.told, 1000 * self.transformer.config.timestep_scale * t, lengths, *given)
        weight = torch.where(bank["edit"][last].bool(), m.edit_weight, 1.0).to(device)[:, None]
        wrong = (told.float() - bank["good"][last].float().to(device)).square()
        return (weight * wrong).mean() / weight.mean()

    def _tell(self, forward, t: Tensor, lengths: list[list[int]], images: Tensor, texts: Tensor, index: Tensor,
              inside: Tensor) -> Tensor:
        """Latents (B, C, h, w) of the mended pictures."""
        side = self.side
        at = own_places(lengths, 0, images.shape[1], side, side).to(images.device)
        found = forward(self.head, at, self.transformer, self.context, t.to(at.device), images, texts, index, inside)
        return F.pixel_shuffle(found.transpose(1, 2).unflatten(2, (side, side)), self.transformer.config.patch_size)

    def mended(self, triplets: list[Triplet], told: list[str]) -> list[np.ndarray]:
        """What the context says of each flawed picture and the words on it, as pictures."""
        most = at_once(self.m.size, self.m.size)
        return [picture for k in range(0, len(triplets), most)
                for picture in self._mended(triplets[k:k + most], told[k:k + most])]

    @torch.no_grad()
    def _mended(self, triplets: list[Triplet], told: list[str]) -> np.ndarray:
        ids = self._ids(told)
        lengths = [[int(row.ne(0).sum())] for row in ids]
        with autocast(self.config):
            images = self.pictures.pooled([Image.fromarray(t.flawed) for t in triplets]).float()
            texts, _ = self._texts(ids)
            index, inside, _ = laid(lengths, ["both"] * len(ids), 1, images.shape[1], ids.shape[1])
            when = torch.full((len(ids),), SHOWN_AT * self.transformer.config.timestep_scale)
            latents = self._tell(told_forward, when, lengths, images, texts, index.to(images.device),
                                 inside.to(images.device))
            vae = self.parts["vae"]
            return to_pictures(vae.decode((latents / vae.config.scaling_factor).to(vae.dtype)).sample)

    def sample(self, file: Path, step: int) -> dict[str, float]:
        """As of reflection tuning, but what is shown and judged is what the context says by itself. Where something is
        to be added that may lie in many places it says a little of each, and such pictures are not mended."""
        if not self.held_out:
            return {}
        judged, figures = self.d.sample_prompts, {}
        triplets = self.held_out[: judged or self.d.grid]
        told = [t.reflection for t in triplets]
        pictures = self.mended(triplets, told)
        if judged:
            shuffled = self.mended(triplets, told[1:] + told[:1])
            figures = correction_figures(triplets, pictures)
            figures["shuffled_fix_rate"] = correction_figures(triplets, shuffled)["fix_rate"]
        shown = 16 if judged else self.d.grid
        save_sheet(file, [[t.flawed for t in triplets[:shown]], pictures[:shown], [t.good for t in triplets[:shown]]])
        return figures
