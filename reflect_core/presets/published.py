"""Published model sets that are too large to come with the pack: what they are made of and where they belong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..types import UserError


@dataclass(frozen=True)
class Source:
    """One repository's share of a set."""

    repository: str
    """On the Hugging Face hub."""
    name: str
    """Of the folder, or of the LoRA file's folder, that it is looked for as."""
    files: str
    size: str
    licence: str


@dataclass(frozen=True)
class Published:
    """A base in diffusers layout, and a LoRA on top of it."""

    base: Source
    lora: Source


PUBLISHED = {
    "flux-corrector": Published(
        Source("black-forest-labs/FLUX.1-dev", "FLUX.1-dev", "the folder as diffusers lays it, with model_index.json",
               "34 GB", "FLUX.1 [dev] Non-Commercial License"),
        Source("diffusion-cot/FLUX-Corrector", "FLUX-Corrector", "pytorch_lora_weights.safetensors", "464 MB",
               "see its page")),
}
"""The sizes are those of the repositories' files, FLUX.1-dev without its single-file copies."""


def published_names() -> list[str]:
    return sorted(PUBLISHED)


def find_published(name: str, roots: Sequence[Path], loras: Sequence[Path],
                   own_lora: str | Path | None = None) -> tuple[Path, Path] | None:
    """(folder, LoRA file) of a set below some of the folders, or None where a part is missing.

    `own_lora` takes the place of the published one, which then need not be there.
    """
    wanted = _set(name)
    folder = next((root / wanted.base.name for root in roots
                   if (root / wanted.base.name / "model_index.json").is_file()), None)
    if folder is None:
        return None
    places = [*(root / wanted.lora.name for root in (*roots, *loras)), folder / "lora"]
    files = [Path(own_lora)] if own_lora else [place / wanted.lora.files for place in places]
    lora = next((file for file in files if file.is_file()), None)
    return None if lora is None else (folder, lora)


def how_to_get(name: str, models: Path) -> str:
    """What is needed and where it goes, for somebody whose ComfyUI has its models in `models`."""
    wanted = _set(name)
    parts = [f"{s.repository} ({s.files}; {s.size}; {s.licence}) as {place / s.name}"
             for s, place in ((wanted.base, models / "diffusers"), (wanted.lora, models / "loras"))]
    return (f"the weights of {name!r} are not here; expected {' and '.join(parts)}; try to download them from "
            "huggingface.co, or the model 'shapes-flux', which comes with the pack and runs the same workflow")


def _set(name: str) -> Published:
    if name not in PUBLISHED:
        raise UserError(f"there is no published set {name!r}; expected one of {', '.join(PUBLISHED)}")
    return PUBLISHED[name]
