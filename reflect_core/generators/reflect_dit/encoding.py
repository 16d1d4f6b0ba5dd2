"""What goes into the transformer: prompts and feedback through Gemma, context pictures through SigLIP (1.2, 1.3).

Each is encoded once, alone and not in a batch, and kept: a batch rounds differently, and a run that is
resumed with an empty cache must end in the same bits.
"""

from __future__ import annotations

import bisect
import hashlib
import inspect
import math
import re
import warnings
from collections.abc import Hashable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ...types import Picture, UserError
from ..kept import Kept
from ..places import Places
from ..rgb import as_rgb
from .options import INSTRUCTION


class Texts:
    """Gemma's states of a text, as diffusers' SanaPipeline makes them, of the valid tokens alone, on the CPU."""

    def __init__(self, tokenizer, text_encoder, most: int, keep: int, places: Places) -> None:
        self.tokenizer, self.text_encoder, self.most, self.places = tokenizer, text_encoder, most, places
        self.tokenizer.padding_side = "right"
        self.kept = Kept(keep)
        self.warned: set[str] = set()

    def states(self, text: str, before: str = "") -> tuple[Tensor, bool]:
        """States (L, D) of a text's tokens, and whether they had to be made.

        `before` is read before the text and not kept: the first token and those from the last but one of `before` on
        are, as in SanaPipeline. What does not fit into `max_sequence_length` is cut off and warned about.
        """
        text = text.lower().strip()
        return self.kept.get((before, text), lambda: self._states(text, before))

    def whole_words(self, text: str, before: str = "") -> str:
        """As many of a text's words, from its first on, as fit; the text itself where all do."""
        most = self._most(before)

        def fits(words: str) -> bool:
            return len(self.tokenizer(before + words.lower().strip(), verbose=False).input_ids) <= most
        if fits(text):
            return text
        ends = [0, *(word.end() for word in re.finditer(r"\S+", text))]
        # By bisection for the first end that does not fit: more words never have fewer tokens.
        heard = text[: ends[bisect.bisect_left(ends, True, lo=1, key=lambda end: not fits(text[:end])) - 1]]
        if text not in self.warned:
            self.warned.add(text)
            warnings.warn(f"the text encoder takes {self.most} tokens and does not see the end of the feedback, "
                          f"{text[len(heard):][:60]!r}; try a shorter one", stacklevel=2)
        return heard

    def _most(self, before: str) -> int:
        """Tokens of a text and of what is read before it."""
        return len(self.tokenizer.encode(before)) + self.most - 2 if before else self.most

    def _states(self, text: str, before: str) -> Tensor:
        instruction, most = len(self.tokenizer.encode(before)) if before else 0, self._most(before)
        ids = self.tokenizer([before + text], truncation=True, max_length=most, return_tensors="pt").input_ids
        if ids.shape[1] == most and text not in self.warned:
            whole = self.tokenizer(before + text, verbose=False).input_ids
            if len(whole) > most:
                self.warned.add(text)
                lost = self.tokenizer.decode(whole[most:])
                warnings.warn(f"the text encoder sees {self.most} tokens of {text[:60]!r}; it does not see the end, "
                              f"{lost[:60]!r}; try a shorter prompt or feedback", stacklevel=2)
        device = self.places("text_encoder")
        states = self.text_encoder(ids.to(device), attention_mask=torch.ones_like(ids, device=device))[0][0]
        if before:
            states = torch.cat([states[:1], states[instruction - 1:]])
        return states.to("cpu")


class Pictures:
    """SigLIP's tokens of a picture, pooled to a square of fewer, on the CPU."""

    def __init__(self, image_encoder, tokens: int, keep: int, places: Places) -> None:
        self.image_encoder, self.places = image_encoder, places
        config = image_encoder.config
        self.side = pooled_side(tokens, config.image_size // config.patch_size)
        self.kept = Kept(keep)

    def tokens(self, picture: Picture) -> Tensor:
        """A picture of any size and mode to tokens (T, V)."""
        return self.found(picture)[1]

    def found(self, picture: Picture) -> tuple[Hashable, Tensor]:
        """What the picture is kept by, and its tokens."""
        picture = as_rgb(picture)
        key = (picture.size, hashlib.sha256(picture.tobytes()).digest())
        return key, self.kept.get(key, lambda: self._tokens(picture))[0]

    def _tokens(self, picture: Picture) -> Tensor:
        return self.pooled([picture])[0]

    def pooled(self, pictures: Sequence[Picture]) -> Tensor:
        """RGB pictures in one batch to tokens (B, T, V) on the CPU; they are not kept."""
        size = self.image_encoder.config.image_size
        pixels = np.stack([np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)
                           for picture in pictures]) / 255
        pixels = torch.from_numpy((pixels - 0.5) / 0.5).permute(0, 3, 1, 2)
        where, dtype = self.places("image_encoder", len(pictures) * size * size), self.image_encoder.dtype
        states = self.image_encoder(pixels.to(where, dtype)).last_hidden_state
        grid = math.isqrt(states.shape[1])
        pooled = F.avg_pool2d(states.transpose(1, 2).unflatten(2, (grid, grid)), grid // self.side)
        return pooled.flatten(2).transpose(1, 2).to("cpu")


def pooled_side(tokens: int, grid: int) -> int:
    """Tokens along a side. UserError if the encoder's square of grid x grid cannot be pooled to so many."""
    side = math.isqrt(tokens)
    if grid % side:
        raise UserError(f"{tokens} tokens of a picture are {side} along a side; expected a divisor of the picture "
                        f"encoder's {grid}. With the published one: 64, 36 or 16")
    return side


def instruction(option: str) -> str:
    """The text that an option stands for: SANA's own instruction is the default of diffusers' pipeline."""
    if option != INSTRUCTION:
        return option
    from diffusers import SanaPipeline

    return "\n".join(inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default)
