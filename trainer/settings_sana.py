"""The same as `settings.py` for the tasks of the SANA family: what they find under `model:` and `data:`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from reflect_core.types import UserError

from .checks import at_least, check_tasks, share


@dataclass(frozen=True)
class SanaVaeModel:
    channels: list[int] = field(default_factory=lambda: [48, 48, 96, 96])
    """Of each resolution; each but the first halves the picture's side."""
    layers_per_block: list[int] = field(default_factory=lambda: [0, 1, 1, 2])
    """Of each resolution. 0 for the first: the full picture is taken apart at once, as in the f64 autoencoders."""
    latent_channels: int = 16
    noise: float = 0.2
    """Spread of the noise on the latents while it is trained."""
    kl: float = 5e-4
    """Weight of the pull of the latents towards zero."""

    def __post_init__(self) -> None:
        at_least(self, "model.", 1, "latent_channels")
        if len(self.channels) != len(self.layers_per_block) or len(self.channels) < 2:
            raise UserError(f"model.channels is {self.channels} and model.layers_per_block {self.layers_per_block}; "
                            "expected as many of either, at least two")
        if min(self.channels) < 1 or any(4 * narrow % wide for wide, narrow in zip(self.channels[1:], self.channels)):
            raise UserError(f"model.channels is {self.channels}; expected each to divide four times the one before")
        if self.layers_per_block[0] < 0 or min(self.layers_per_block[1:]) < 1:
            raise UserError(f"model.layers_per_block is {self.layers_per_block}; expected at least 1 of each, 0 of the "
                            "first alone")
        if self.noise <= 0:
            raise UserError(f"model.noise is {self.noise}; expected a number above 0")
        if self.channels[-1] % self.latent_channels:
            raise UserError(f"model.latent_channels is {self.latent_channels}; expected a divisor of the last of "
                            f"model.channels, {self.channels[-1]}")


@dataclass(frozen=True)
class SanaTextModel:
    text_length: int
    """Most tokens of a text."""
    width: int = 128
    layers: int = 4
    heads: int = 4

    def __post_init__(self) -> None:
        at_least(self, "model.", 1, "text_length", "layers", "heads")
        if self.width % (2 * self.heads) or self.width < 1:
            raise UserError(f"model.width is {self.width}; expected a multiple of {2 * self.heads}, twice the heads")


@dataclass(frozen=True)
class SanaVisionModel:
    text: str
    """Result folder of a `sana_text` run."""
    text_length: int
    patch: int = 4
    """Pixels of a token's side."""
    places: int = 8
    """Tokens along a side once they are pooled: Reflect-DiT takes the square of it."""
    width: int = 128
    layers: int = 3
    heads: int = 4

    def __post_init__(self) -> None:
        at_least(self, "model.", 1, "text_length", "patch", "places", "width", "layers", "heads")
        if 64 % (self.patch * self.places):
            raise UserError(f"model.patch times model.places is {self.patch * self.places}; expected a divisor of 64, "
                            "the pixels of a side")
        if self.width % self.heads or self.width % 4:
            raise UserError(f"model.width is {self.width}; expected a multiple of 4 and of model.heads, {self.heads}")


@dataclass(frozen=True)
class SanaVisionData:
    pictures: int = 20000
    """Rendered scenes, and as many corrupted twins."""
    tasks: dict[str, float] | None = None

    def __post_init__(self) -> None:
        at_least(self, "data.", 1, "pictures")
        check_tasks(self.tasks, "data.tasks")


@dataclass(frozen=True)
class SanaBaseModel:
    vae: str
    """Result folder of a `sana_vae` run."""
    text: str
    """Result folder of a `sana_text` run."""
    text_length: int
    """Most tokens of a text."""
    blocks: int = 6
    heads: int = 8
    head_dim: int = 32
    """Of the linear self-attention, as in SANA."""
    cross_heads: int = 4
    side: int = 8
    """Latents along a picture's side."""
    shift: float = 3.0
    """Of the scheduler."""
    drop_text: float = 0.1
    time_mean: float = 0.0
    """Mean of the normal whose logistic is the time: 0 is SANA's; above it, more of the noisy end, where number,
    colour and place are decided."""
    sample_steps: int = 14
    sample_guidance: float = 3.0

    def __post_init__(self) -> None:
        at_least(self, "model.", 1, "text_length", "blocks", "heads", "head_dim", "cross_heads", "side", "sample_steps")
        share(self, "drop_text")
        if self.heads * self.head_dim % (4 * self.cross_heads):
            raise UserError(f"model.heads times model.head_dim is {self.heads * self.head_dim}; expected a multiple of "
                            f"{4 * self.cross_heads}, four times model.cross_heads")


@dataclass(frozen=True)
class SanaBaseData:
    bank: int
    """Rendered scenes with captions."""
    tasks: dict[str, float] | None = None
    """Weight of each of the shapes world's tasks; 1 where it is not named."""
    sample_prompts: int = 16
    """Held-out prompts of each task that are drawn for a sample grid."""

    def __post_init__(self) -> None:
        at_least(self, "data.", 1, "bank", "sample_prompts")
        check_tasks(self.tasks, "data.tasks")


@dataclass(frozen=True)
class ReflectModel:
    base: str
    """Model folder of the SANA family in diffusers' layout."""
    vision: str
    """Folder of SigLIP's vision model, or one that has it as `image_encoder/`."""
    checkpoint: str | None = None
    """Reflect-DiT weights to go on from; null: the base's, and new parts whose last gain is zero."""
    text_length: int = 300
    """Most tokens of a prompt or a feedback. 300: published."""
    image_tokens: int = 64
    """Of each flawed picture. 64: published."""
    context_layers: int = 2
    """Of the context transformer. 2: published."""
    pairs: int = 3
    """Most flawed pictures of a row. 3: published."""
    size: int = 64
    """Pixels of the picture that is drawn. 1024: published."""
    rank: int | None = None
    """null: all of SANA is trained, as published. A number: low-rank changes of its attention, beside the new parts."""
    weights: str = "fp32"
    """Of what is frozen: fp32, or bf16 for a large model. All of SANA is trained in fp32 only."""
    sft: bool = False
    """The paper's control: the same training on the good pictures alone, without any context."""
    mend: float = 0.0
    """Share of the rows whose good picture is the last flawed one, mended; that of the others is one of the prompt's
    good pictures at random. 0: published."""
    edit_weight: float = 1.0
    """How many times as much the error counts at the places where a mended picture differs from the flawed one:
    few, and all there is to learn of the feedback. 1: published."""
    plain: float = 0.0
    """Share of the steps without any context. 0: published."""
    partial: float = 0.0
    """Share of the rows that see their pairs' words alone or pictures alone, half of it each. 0: published."""
    guide: float = 0.0
    """Weight, at the first step, of a loss that draws each place of the picture towards its own in the last flawed one:
    where a short training would not find out by itself where to look. Takes memory for attention written out. 0:
    published."""
    guide_steps: int = 300
    """Steps over which that weight falls to zero."""
    gain_lr: float = 1.0
    """Learning rate of the new parts' last gain, as a multiple of `lr`. 1: published. A gain that starts at zero grows
    by one learning rate a step at most, and until it is about that of the prompt's tokens the context is hardly heard:
    all of a short training."""
    drop_text: float = 0.1
    drop_context: float = 0.3
    time_mean: float = 0.0
    """As for the base."""
    sample_steps: int = 14
    sample_guidance: float = 3.0

    def __post_init__(self) -> None:
        at_least(self, "model.", 1, "text_length", "image_tokens", "context_layers", "pairs", "size", "rank",
                 "guide_steps", "sample_steps")
        share(self, "mend", "plain", "partial", "drop_text", "drop_context")
        if not 1 <= self.edit_weight < math.inf:
            raise UserError(f"model.edit_weight is {self.edit_weight}; expected a number from 1 on, 1 as published")
        if not 0 <= self.guide < math.inf:
            raise UserError(f"model.guide is {self.guide}; expected a number from 0 on, 0 as published")
        if not 0 < self.gain_lr < math.inf:
            raise UserError(f"model.gain_lr is {self.gain_lr}; expected a number above 0, 1 as published")
        if math.isqrt(self.image_tokens) ** 2 != self.image_tokens:
            raise UserError(f"model.image_tokens is {self.image_tokens}; expected a square number, 64 as published")
        if self.weights not in ("fp32", "bf16"):
            raise UserError(f"model.weights is {self.weights!r}; expected fp32 or bf16")
        if self.weights == "bf16" and self.rank is None:
            raise UserError("model.weights is 'bf16' and model.rank null; expected fp32 where all of SANA is trained, "
                            "or a rank, for example model.rank: 32")
