"""What goes into the transformer: texts through CLIP and T5, condition pictures through the autoencoder.

Each is encoded once and kept. And each is encoded alone, not in a batch: a batch rounds differently,
so that the last bits of a picture would depend on what else was asked for at the time, and a run that
was killed and resumed with an empty cache would not end in the same bits. Beside tens of steps of
the transformer this costs nothing.
"""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

from ...types import Picture
from .latents import pack


class Kept:
    """The latest results of a function by key, oldest use forgotten first."""

    def __init__(self, size: int):
        self.size = size
        self.values: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Any]) -> tuple[Any, bool]:
        """(value, whether it was made anew)."""
        new = key not in self.values
        value = make() if new else self.values[key]
        self.values[key] = value
        self.values.move_to_end(key)
        while len(self.values) > self.size:
            self.values.popitem(last=False)
        return value, new


class TextEncoders:
    """CLIP's pooled vector and T5's states of a text, as diffusers' FluxPipeline makes them."""

    def __init__(self, tokenizer, text_encoder, tokenizer_2, text_encoder_2, max_sequence_length: int,
                 keep: int):
        self.tokenizer, self.text_encoder = tokenizer, text_encoder
        self.tokenizer_2, self.text_encoder_2 = tokenizer_2, text_encoder_2
        self.max_sequence_length = max_sequence_length
        self.pooled_kept, self.states_kept = Kept(keep), Kept(keep)

    def pooled(self, text: str) -> tuple[Tensor, bool]:
        """CLIP's pooled vector (P,), and whether it had to be made. Cut at CLIP's own length."""
        return self.pooled_kept.get(text, lambda: self._pooled(text))

    def states(self, text: str) -> tuple[Tensor, bool]:
        """T5's states (L, D), and whether they had to be made. A longer text is cut, with a warning."""
        return self.states_kept.get(text, lambda: self._states(text))

    def _pooled(self, text: str) -> Tensor:
        ids = self.tokenizer([text], padding="max_length", max_length=self.tokenizer.model_max_length,
                             truncation=True, return_tensors="pt").input_ids
        encoder = self.text_encoder
        return encoder(ids.to(encoder.device)).pooler_output[0].to(encoder.dtype)

    def _states(self, text: str) -> Tensor:
        most = self.max_sequence_length
        ids = self.tokenizer_2([text], padding="max_length", max_length=most, truncation=True,
                               return_tensors="pt").input_ids
        length = len(self.tokenizer_2(text).input_ids)
        if length > most:
            log = logging.getLogger(__name__)
            log.warning("a text of %d tokens was cut at %d: %.60s...", length, most, text)
        encoder = self.text_encoder_2
        return encoder(ids.to(encoder.device))[0][0].to(encoder.dtype)


class ConditionEncoder:
    """A flawed picture as the condition's latent tokens (ReflectionFlow, section 1.2)."""

    def __init__(self, vae, size: int, posterior: str, keep: int):
        self.vae, self.size, self.posterior = vae, size, posterior
        self.processor = VaeImageProcessor(vae_scale_factor=vae_scale(vae) * 2)
        self.kept = Kept(keep)

    def tokens(self, picture: Picture, generator: torch.Generator) -> Tensor:
        """A picture of any size to tokens (1, M, C), M = (size / autoencoder scale / 2) squared.

        `generator` (CPU) is drawn from only when the posterior is sampled.
        """
        picture = picture.convert("RGB")
        key = (picture.size, hashlib.sha256(picture.tobytes()).digest())
        (mean, deviation), _ = self.kept.get(key, lambda: self._moments(picture))
        if self.posterior == "sample":
            noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
            mean = mean + deviation * noise.to(mean.device)
        config = self.vae.config
        return pack((mean - (config.shift_factor or 0.0)) * config.scaling_factor)

    def _moments(self, picture: Picture) -> tuple[Tensor, Tensor]:
        square = picture.resize((self.size, self.size), Image.Resampling.BICUBIC)
        pixels = self.processor.preprocess(square).to(self.vae.device, self.vae.dtype)
        distribution = self.vae.encode(pixels).latent_dist
        return distribution.mean, distribution.std


def vae_scale(vae) -> int:
    """Pixels to one latent, along a side."""
    return 2 ** (len(vae.config.block_out_channels) - 1)
