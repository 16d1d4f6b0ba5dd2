"""The editors' switches. What a reflection becomes is the same for both families; the rest is each one's own."""

from __future__ import annotations

from dataclasses import dataclass

from ...types import Pair, Request, UserError
from ..checking import is_number, is_whole, one_of
from .instruction import TARGETS, Instruction, instruction


@dataclass(frozen=True)
class EditOptions:
    """What both families have."""

    target: str = "silent"
    """Whether the editor is told what the whole picture should show: 'silent', only where the reflection asks for
    nothing; 'always', behind what to change."""
    keep: bool = True
    """Say that everything else should stay as it is."""
    max_words: int = 120
    """Words of the edits in one instruction; what does not fit is left out and noted on the record."""
    text_cache: int = 64
    """Texts whose states are kept."""
    picture_cache: int = 16
    """Flawed pictures whose latents are kept."""
    vae_tiling: bool = False
    """Encode and decode pictures larger than 512 pixels tile by tile: less memory, and an approximation, see
    `tiling.py`."""

    def __post_init__(self) -> None:
        one_of("target", self.target, TARGETS)
        for name in ("keep", "vae_tiling"):
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"option {name} is {getattr(self, name)!r}; expected true or false, without quotes")
        self._check_counts("max_words", "text_cache", "picture_cache")

    def _check_counts(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if not is_whole(value) or value < 1:
                raise UserError(f"option {name} is {value!r}; expected a whole number of 1 or more")

    def told(self, request: Request) -> Instruction:
        """What the editor is told of a request; without a picture, the prompt."""
        if not request.context:
            return Instruction("", request.prompt)
        pair: Pair = request.context[0]
        return instruction(request.prompt, pair.feedback, self.target, self.keep, self.max_words)


@dataclass(frozen=True)
class KontextOptions(EditOptions):
    """FLUX.1 Kontext's."""

    true_cfg_scale: float = 1.0
    """Above 1, a second pass with the text "" and this scale, as in diffusers' FluxKontextPipeline. 1: off."""
    max_sequence_length: int = 512
    """Tokens of T5, padded without a mask."""
    max_batch: int = 4
    """Pictures in one batch. The same requests with the same value come out bit for bit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_counts("max_sequence_length", "max_batch")
        if not is_number(self.true_cfg_scale) or self.true_cfg_scale < 1:
            raise UserError(f"option true_cfg_scale is {self.true_cfg_scale!r}; expected a number of 1 (off) or more")


@dataclass(frozen=True)
class QwenOptions(EditOptions):
    """Qwen-Image-Edit's. It draws one picture at a time."""

    negative_prompt: str = " "
    """What guidance leads away from. A space: published."""
    max_sequence_length: int = 512
    """Tokens of a prompt that is drawn without a picture. 512: diffusers' QwenImagePipeline."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_counts("max_sequence_length")
        if not isinstance(self.negative_prompt, str):
            raise UserError(f"option negative_prompt is {self.negative_prompt!r}; expected text")
