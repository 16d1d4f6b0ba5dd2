"""What each task finds under `model:` and `data:` in its config, with the defaults.

A value checked here is checked before torch is imported. Pixels are sides of squares.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from reflect_core.types import UserError

from .checks import at_least, check_tasks, share
from .schema import filled, parse
from .settings_sana import (
    ReflectModel,
    SanaBaseData,
    SanaBaseModel,
    SanaTextModel,
    SanaVaeModel,
    SanaVisionData,
    SanaVisionModel,
)


@dataclass(frozen=True)
class VaeModel:
    channels: list[int] = field(default_factory=lambda: [32, 48, 64])
    """Of each resolution, multiples of 8; each but the first halves the picture's side."""
    layers_per_block: int = 1
    latent_channels: int = 4
    kl: float = 5e-4
    """Weight of the pull of the latents towards a normal distribution."""

    def __post_init__(self) -> None:
        if not self.channels or any(c < 8 or c % 8 for c in self.channels):
            raise UserError(f"model.channels is {self.channels}; expected multiples of 8, one for each resolution")
        at_least(self, "model.", 1, "layers_per_block", "latent_channels")


@dataclass(frozen=True)
class VaeData:
    pictures: int = 8000
    """Rendered scenes."""

    def __post_init__(self) -> None:
        at_least(self, "data.", 1, "pictures")


@dataclass(frozen=True)
class TextModel:
    text_length: int
    """Tokens of a text for T5."""
    width: int = 128
    layers: int = 3

    def __post_init__(self) -> None:
        at_least(self, "model.", 1, "text_length", "layers")
        if self.width < 8 or self.width % 8:
            raise UserError(f"model.width is {self.width}; expected a multiple of 8, the number of heads")


@dataclass(frozen=True)
class TextData:
    sentences: int = 30000
    """Prompts, every other one with a reflection for T5."""

    def __post_init__(self) -> None:
        at_least(self, "data.", 1, "sentences")


@dataclass(frozen=True)
class BaseModel:
    vae: str
    """Result folder of a `vae` run."""
    text: str
    """Result folder of a `text` run."""
    text_length: int
    """Tokens of a text for T5."""
    start: str | None = None
    """Result folder of a `base` run whose transformer this one goes on with; None: from nothing."""
    heads: int = 4
    head_dim: int = 64
    double_blocks: int = 1
    single_blocks: int = 5
    side: int = 8
    """Tokens along a picture's side."""
    shift: float = 3.0
    """Of the scheduler."""
    distil: float = 0.25
    """Last share of the steps, in which guidance is distilled."""
    time_mean: float = 0.0
    """Mean of the normal whose logistic is the time: 0 is the paper's; above it, more of the noisy end, where
    number, colour and place are decided."""
    edits: float = 0.0
    """Share of the steps that correct a flawed picture as they are told, by the base's own weights."""
    condition_offset: list[int] = field(default_factory=lambda: [0, 0])
    """Where the flawed picture lies in these steps, as the corrector has it."""
    sample_guidance: float = 2.5

    def __post_init__(self) -> None:
        _check_offset(self.condition_offset)
        at_least(self, "model.", 1, "text_length", "heads", "double_blocks", "single_blocks", "side")
        if self.head_dim < 8 or self.head_dim % 8:
            raise UserError(f"model.head_dim is {self.head_dim}; expected a multiple of 8")
        share(self, "distil", "edits")


@dataclass(frozen=True)
class BaseData:
    bank: int
    """Rendered scenes with captions."""
    tasks: dict[str, float] | None = None
    """Weight of each of the shapes world's tasks; 1 where it is not named."""
    triplets: int = 0
    """Corrupted scenes and their repairs, for `model.edits`."""
    sample_prompts: int = 16
    """Held-out prompts of each task that are drawn for a sample grid, and four times as many held-out triplets."""

    def __post_init__(self) -> None:
        at_least(self, "data.", 1, "bank", "sample_prompts")
        at_least(self, "data.", 0, "triplets")
        check_tasks(self.tasks, "data.tasks")


@dataclass(frozen=True)
class HarvestModel:
    base: str
    """Result folder of a `base` or a `sana_base` run, or another model folder of either family."""
    text_length: int
    sample_steps: int = 16
    sample_guidance: float = 2.5
    tries: int = 1
    """Pictures of each prompt."""

    def __post_init__(self) -> None:
        at_least(self, "model.", 1, "text_length", "sample_steps", "tries")


@dataclass(frozen=True)
class HarvestData:
    tasks: dict[str, float] | None = None

    def __post_init__(self) -> None:
        check_tasks(self.tasks, "data.tasks")


@dataclass(frozen=True)
class CorrectorModel:
    base: str
    """Model folder of the FLUX family in diffusers' layout."""
    text_length: int = 512
    """Tokens of a text for T5. 512: published."""
    rank: int = 32
    alpha: float | None = None
    """null: as the rank, as published."""
    lora: str | None = None
    """Weights to start from (rank and alpha are then theirs); null: new ones, which change nothing yet."""
    weights: str = "fp32"
    """Of the frozen base: fp32, or bf16 for a large one."""
    checkpointing: bool = False
    """Compute each block again in the backward pass: slower, and much less memory."""
    size: int = 64
    """Pixels of the picture that is drawn. 1024: published."""
    condition_size: int | None = None
    """Pixels to which the flawed picture is reduced. null: as `size`. 512: published."""
    condition_offset: list[int] | None = None
    """Shift of the flawed picture's position ids in (rows, columns) of tokens. null: its own width to the left, as
    published. [0, 0]: on the picture itself, so that the frozen base sees what stands in the same place."""
    guidance: float = 1.0
    time_mean: float = 0.0
    """As for the base."""
    drop_reflection: float = 0.1
    drop_image: float = 0.1
    """Flawed picture black, and no reflection."""
    drop_text: float = 0.1
    """T5's text empty; CLIP keeps the prompt."""
    sample_guidance: float = 2.5
    sample_steps: int = 16

    def __post_init__(self) -> None:
        at_least(self, "model.", 1, "text_length", "rank", "size", "condition_size", "sample_steps")
        share(self, "drop_reflection", "drop_image", "drop_text")
        _check_offset(self.condition_offset)
        if self.weights not in ("fp32", "bf16"):
            raise UserError(f"model.weights is {self.weights!r}; expected fp32 or bf16")


@dataclass(frozen=True)
class Source:
    """Where triplets come from."""

    kind: str
    """folder: a `triplets.jsonl` with its pictures; corrupted: scenes of the shapes world with flaws put in."""
    path: str = ""
    """Of the folder."""
    count: int | None = None
    """How many at most; null: all of the folder."""
    repeat: int = 1
    """How often each is drawn in comparison to those of a source with repeat 1."""
    tasks: dict[str, float] | None = None
    """Weights of the shapes world's tasks, for corrupted ones."""
    tries: int = 1
    """Of corrupted scenes, how many of each prompt."""

    def check(self, key: str) -> None:
        if self.kind not in ("folder", "corrupted"):
            raise UserError(f"{key}.kind is {self.kind!r}; expected folder or corrupted")
        if self.kind == "folder" and not self.path:
            raise UserError(f"the key {key}.path is missing; expected the folder that holds triplets.jsonl")
        if self.kind == "corrupted" and self.count is None:
            raise UserError(f"the key {key}.count is missing; expected how many to make")
        at_least(self, key + ".", 1, "count", "repeat", "tries")
        check_tasks(self.tasks, key + ".tasks")


@dataclass(frozen=True)
class CorrectorData:
    sources: list[dict[str, Any]]
    """Each one's keys are those of `Source`."""
    eval: dict[str, Any] | None = None
    """A source of which nothing is trained on. null: `held_out` says what is kept back."""
    held_out: int = 8
    """The last triplets of every folder that are kept back when there is no `eval`."""
    sample_prompts: int = 0
    """Corrupted scenes of the shapes world whose correction the detector judges (fix_rate, kept); they then
    take the place of held-out triplets. 0: for pictures of another world."""
    grid: int = 8
    """Held-out triplets that are drawn for a sample grid."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise UserError("data.sources is empty; expected at least one, for example "
                            "{kind: folder, path: my-triplets}")
        at_least(self, "data.", 0, "held_out", "sample_prompts")
        at_least(self, "data.", 1, "grid")
        self.parsed()
        self.parsed_eval()

    def parsed(self) -> list[Source]:
        return [_source(raw, f"data.sources.{k}") for k, raw in enumerate(self.sources)]

    def parsed_eval(self) -> Source | None:
        return None if self.eval is None else _source(self.eval, "data.eval")


@dataclass(frozen=True)
class BundleModel:
    base: str
    lora: str | None = None
    """Result folder of a `corrector` run, on a base of the FLUX family."""
    checkpoint: str | None = None
    """Result folder of a `reflect` run, on a base of the SANA family; it takes the place of the base's transformer. One
    of `model.sft` is of plain SANA and goes without `vision`."""
    vision: str | None = None
    """Result folder of a `sana_vision` run, the one that the checkpoint was trained with."""
    most_megabytes: float = 24


@dataclass(frozen=True)
class BundleData:
    """What becomes `reflect.json`, but for the last."""

    defaults: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    """On top of those that the corrector was trained with, which lie beside it."""
    about: str = ""
    allow_dirty: bool = False
    """Take weights too whose provenance says that the code which trained them was changed and not committed."""


SECTIONS = {"vae": (VaeModel, VaeData), "text": (TextModel, TextData), "base": (BaseModel, BaseData),
            "harvest": (HarvestModel, HarvestData), "corrector": (CorrectorModel, CorrectorData),
            "bundle": (BundleModel, BundleData), "sana_vae": (SanaVaeModel, VaeData),
            "sana_text": (SanaTextModel, TextData), "sana_vision": (SanaVisionModel, SanaVisionData),
            "sana_base": (SanaBaseModel, SanaBaseData), "reflect": (ReflectModel, CorrectorData),
            "reflect_context": (ReflectModel, CorrectorData)}


def filled_sections(task: str, model: dict[str, Any], data: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A task's `model` and `data` as its config has them, with all defaults."""
    kinds = SECTIONS[task]
    model, data = filled(kinds[0], model), filled(kinds[1], data)
    if kinds[1] is CorrectorData:
        data["sources"] = [filled(Source, source) for source in data.get("sources", [])]
        if data["eval"] is not None:
            data["eval"] = filled(Source, data["eval"])
    return model, data


def check_together(model: Any, data: Any) -> None:
    """Raises `UserError` for sections that do not go together."""
    if isinstance(model, BaseModel) and model.edits and not data.triplets:
        raise UserError(f"data.triplets is 0 and model.edits {model.edits}; expected triplets to correct, for example "
                        "data.triplets: 60000")


def _check_offset(offset: list[int] | None) -> None:
    if offset is not None and len(offset) != 2:
        raise UserError(f"model.condition_offset is {offset}; expected two numbers, rows and columns")


def _source(raw: dict[str, Any], key: str) -> Source:
    source = parse(Source, raw, key + ".")
    source.check(key)
    return source
