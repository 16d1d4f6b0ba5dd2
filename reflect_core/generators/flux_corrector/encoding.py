"""What goes into the transformer: texts through CLIP and T5, condition pictures through the autoencoder.

Each is encoded once and kept. And each is encoded alone, not in a batch: a batch rounds differently,
so that the last bits of a picture would depend on what else was asked for at the time, and a run that
was killed and resumed with an empty cache would not end in the same bits. Beside tens of steps of
the transformer this costs nothing.
"""

from __future__ import annotations

import hashlib
import warnings

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

from ...types import Picture
from ..kept import Kept
from ..places import Places
from ..rgb import as_rgb
from .latents import pack, scaled


class TextEncoders:
    """CLIP's pooled vector and T5's states of a text, as diffusers' FluxPipeline makes them.

    They are kept on the CPU, wherever the encoders are; `places` says where one computes, and may load it.
    Each encoder sees only so many tokens of a text, so that two long ones can have the same states; a text
    that is cut is warned about once, with the words that are not seen.
    """

    def __init__(self, tokenizer, text_encoder, tokenizer_2, text_encoder_2, max_sequence_length: int,
                 keep: int, places: Places):
        self.tokenizer, self.text_encoder = tokenizer, text_encoder
        self.tokenizer_2, self.text_encoder_2 = tokenizer_2, text_encoder_2
        self.max_sequence_length, self.places = max_sequence_length, places
        self.pooled_kept, self.states_kept = Kept(keep), Kept(keep)
        self.warned: set[tuple[str, str]] = set()

    def pooled(self, text: str) -> tuple[Tensor, bool]:
        """CLIP's pooled vector (P,), and whether it had to be made. Cut at CLIP's own length."""
        return self.pooled_kept.get(text, lambda: self._pooled(text))

    def states(self, text: str) -> tuple[Tensor, bool]:
        """T5's states (L, D), and whether they had to be made. Cut at `max_sequence_length`."""
        return self.states_kept.get(text, lambda: self._states(text))

    def _pooled(self, text: str) -> Tensor:
        ids = self._ids("CLIP", self.tokenizer, self.tokenizer.model_max_length, text)
        encoder = self.text_encoder
        return encoder(ids.to(self.places("text_encoder"))).pooler_output[0].to("cpu", encoder.dtype)

    def _states(self, text: str) -> Tensor:
        ids = self._ids("T5", self.tokenizer_2, self.max_sequence_length, text)
        encoder = self.text_encoder_2
        return encoder(ids.to(self.places("text_encoder_2")))[0][0].to("cpu", encoder.dtype)

    def _ids(self, name: str, tokenizer, most: int, text: str) -> Tensor:
        """Token ids (1, most), padded or cut."""
        tokens = tokenizer([text], padding="max_length", max_length=most, truncation=True, return_tensors="pt",
                           return_attention_mask=True)
        # Only a text that fills every place can have been cut, so hardly any is tokenized again.
        if tokens.attention_mask.all() and (name, text) not in self.warned:
            # Not `verbose`: no line of transformers about a text that is too long to be encoded whole.
            whole = tokenizer(text, verbose=False).input_ids
            if len(whole) > most:
                self.warned.add((name, text))
                lost = tokenizer.decode(whole[most - 1:-1])  # the last of both is the end mark
                warnings.warn(f"{name} sees {most} of the {len(whole)} tokens of {_shown(text)}; it does not see the "
                              f"end, {_shown(lost)}; try a shorter prompt or reflection", stacklevel=2)
        return tokens.input_ids


class ConditionEncoder:
    """A flawed picture as the condition's latent tokens (ReflectionFlow, section 1.2)."""

    def __init__(self, vae, size: int, posterior: str, keep: int, places: Places):
        self.vae, self.size, self.posterior, self.places = vae, size, posterior, places
        self.processor = VaeImageProcessor(vae_scale_factor=vae_scale(vae) * 2)
        self.kept = Kept(keep)

    def tokens(self, picture: Picture, generator: torch.Generator) -> Tensor:
        """A picture of any size and mode to tokens (1, M, C) on the CPU, M = (size / autoencoder scale / 2) squared.

        `generator` (CPU) is drawn from only when the posterior is sampled.
        """
        picture = as_rgb(picture)
        key = (picture.size, hashlib.sha256(picture.tobytes()).digest())
        (mean, deviation), _ = self.kept.get(key, lambda: self._moments(picture))
        if self.posterior == "sample":
            noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
            mean = mean + deviation * noise
        return pack(scaled(mean, self.vae.config))

    def _moments(self, picture: Picture) -> tuple[Tensor, Tensor]:
        square = picture.resize((self.size, self.size), Image.Resampling.BICUBIC)
        pixels = self.processor.preprocess(square).to(self.places("vae", self.size**2), self.vae.dtype)
        distribution = self.vae.encode(pixels).latent_dist
        return distribution.mean.cpu(), distribution.std.cpu()


def vae_scale(vae) -> int:
    """Pixels to one latent of an `AutoencoderKL`, along a side. Weights are not needed."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def _shown(text: str, most: int = 100) -> str:
    return repr(text if len(text) <= most else text[:most - 3] + "...")
