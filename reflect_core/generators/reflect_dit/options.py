"""Reflect-DiT's switches: where the official code has a choice or a quirk, and which is the default (section 9)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...types import UserError
from ..checking import is_whole

INSTRUCTION = "sana"
"""SANA's own instruction for prompts: diffusers has its words."""


@dataclass(frozen=True)
class ReflectOptions:
    """How `ReflectDiT` turns requests into model inputs. Defaults are those of the published inference."""

    max_context: int = 3
    """K, the pairs that one picture is drawn with at most. 3: published."""
    image_tokens: int = 64
    """Tokens of a context picture, a square number. 64: published; 16 and 36 are in the paper's ablation."""
    prompt_instruction: str = INSTRUCTION
    """Put before every prompt for the text encoder, and cut off behind it. 'sana': SANA's own, as the published
    inference does and its training does not. Empty: none. Any other text is taken as it is."""
    feedback_prefix: str = ""
    """The same for feedback. Empty, as in the published inference; training had one."""
    see: str = "both"
    """What of the pairs is seen: 'both', as published, or for ablations 'words' or 'pictures' alone. It takes a model
    that was trained with rows of either kind (`model.partial` of the trainer)."""
    no_context: str = "plain"
    """How a picture without pairs is drawn, the first one of a search: 'plain', without any context tokens, as
    published; or 'dropped', with the zero vectors of a dropped context, as all of training's such rows had."""
    mask_last: bool = True
    """Never attend to the last context token of the longer row. True: published."""
    pad_context: bool = True
    """Let the padding of a row that is shorter than a dropped one take part in the context transformer. True:
    published."""
    rotary_bf16: bool = True
    """Round the context's rotary frequencies to bf16. True: published, whose scripts cast the whole model."""
    max_sequence_length: int = 300
    """Tokens of a prompt or a feedback. 300: published."""
    max_batch: int = 4
    """Pictures in one batch. The same requests with the same value come out bit for bit."""
    text_cache: int = 64
    """Texts whose states are kept."""
    picture_cache: int = 64
    """Context pictures whose tokens are kept."""
    prompt_cache: int = 8
    """Prompts whose keys and values in every block are kept for the next tries; in the published size and bf16 they
    take 0.18 MB a token."""
    vae_tiling: bool = False
    """Decode pictures larger than 512 pixels tile by tile: less memory, and an approximation, see `tiling.py`."""
    compile: bool = False
    """Run the transformer's blocks through torch.compile, see `compiled.py`."""

    def __post_init__(self) -> None:
        for name in ("max_context", "image_tokens", "max_sequence_length", "max_batch", "text_cache", "picture_cache",
                     "prompt_cache"):
            value = getattr(self, name)
            if not is_whole(value) or value < 1:
                raise UserError(f"option {name} is {value!r}; expected a whole number of 1 or more")
        if math.isqrt(self.image_tokens) ** 2 != self.image_tokens:
            raise UserError(f"option image_tokens is {self.image_tokens}; expected a square number, 64 as published")
        for name in ("mask_last", "pad_context", "rotary_bf16", "vae_tiling", "compile"):
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"option {name} is {getattr(self, name)!r}; expected true or false, without quotes")
        if self.see not in ("both", "words", "pictures"):
            raise UserError(f"option see is {self.see!r}; expected both, words or pictures")
        if self.no_context not in ("plain", "dropped"):
            raise UserError(f"option no_context is {self.no_context!r}; expected plain or dropped")
        for name in ("prompt_instruction", "feedback_prefix"):
            if not isinstance(getattr(self, name), str):
                raise UserError(f"option {name} is {getattr(self, name)!r}; expected text")
