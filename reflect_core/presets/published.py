"""Published model sets that are too large to come with the pack: what they are made of and where they belong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..types import UserError
from .load import FAMILIES


@dataclass(frozen=True)
class Source:
    """One repository's share of a set."""

    repository: str
    """On the Hugging Face hub."""
    kind: str
    """The folder of ComfyUI's `models` that it belongs to."""
    name: str
    """Of its own folder there."""
    file: str
    """What must lie in that folder."""
    size: str
    licence: str


@dataclass(frozen=True)
class Published:
    """A base in diffusers layout, and the corrector's weights on top of it, or an editor, which needs none."""

    family: str
    """The base's pipeline class."""
    base: Source
    corrector: Source | None
    small: str
    """The bundled model that runs the same workflow."""
    others: tuple[Source, ...] = ()


PUBLISHED = {
    "flux-corrector": Published(
        "FluxPipeline",
        Source("black-forest-labs/FLUX.1-dev", "diffusers", "FLUX.1-dev", "model_index.json", "34 GB",
               "FLUX.1 [dev] Non-Commercial License"),
        Source("diffusion-cot/FLUX-Corrector", "loras", "FLUX-Corrector", "pytorch_lora_weights.safetensors", "464 MB",
               "licence: see its page"),
        "shapes-flux"),
    "reflect-dit": Published(
        "SanaPipeline",
        Source("Efficient-Large-Model/Sana_1600M_1024px_MultiLing_diffusers", "diffusers",
               "Sana_1600M_1024px_MultiLing_diffusers", "model_index.json", "9 GB in bf16",
               "licence: NVIDIA's NSCL v2-custom, and Gemma's terms"),
        Source("jacklishufan/reflect-dit, its folder dit/transformer", "reflect", "reflect-dit", "config.json",
               "3.5 GB", "no licence is stated"),
        "shapes-sana",
        (Source("google/siglip-large-patch16-384", "reflect", "reflect-dit/image_encoder", "config.json",
                "2.6 GB", "Apache-2.0"),)),
    "kontext": Published(
        "FluxKontextPipeline",
        Source("black-forest-labs/FLUX.1-Kontext-dev", "diffusers", "FLUX.1-Kontext-dev", "model_index.json", "34 GB",
               "FLUX.1 [dev] Non-Commercial License"),
        None, "shapes-flux"),
    "qwen-image-edit": Published(
        "QwenImageEditPlusPipeline",
        Source("Qwen/Qwen-Image-Edit-2509", "diffusers", "Qwen-Image-Edit-2509", "model_index.json", "58 GB",
               "licence: Apache-2.0"),
        None, "shapes-flux"),
}
"""The sizes are of what is needed of each repository."""


def published_names() -> list[str]:
    return sorted(PUBLISHED)


def find_published(name: str, roots: Sequence[Path], own_lora: str | Path | None = None
                   ) -> tuple[Path, Path | None] | None:
    """(base folder, corrector's file, or its folder where that has a config) of a set below some of the folders, or
    None where a part is missing. An editor has no corrector beside it.

    None, too, for a family that there is no generator of yet. `own_lora` takes the place of the published
    corrector, which then need not be there.
    """
    wanted = _set(name)
    if wanted.family not in FAMILIES:
        return None
    base = next((root / wanted.base.name for root in roots if (root / wanted.base.name / wanted.base.file).is_file()),
                None)
    if base is None:
        return None
    if not all(any((root / other.name / other.file).is_file() for root in roots) for other in wanted.others):
        return None
    if wanted.corrector is None:
        return base, None if own_lora is None else Path(own_lora)
    places = [root / wanted.corrector.name / wanted.corrector.file for root in roots]
    corrector = next((file for file in ([Path(own_lora)] if own_lora else places) if file.is_file()), None)
    if corrector is None:
        return None
    return base, corrector.parent if corrector.name == "config.json" else corrector


def how_to_get(name: str, models: Path) -> str:
    """What is needed and where it goes, for somebody whose ComfyUI has its models in `models`."""
    wanted = _set(name)
    instead = (f"the model {wanted.small!r}, which comes with the pack and runs the same workflow with the judge "
               "'shapes'")
    parts = [f"{part.repository} ({part.size}; {part.licence}) as {models / part.kind / part.name}, with {part.file}"
             for part in (wanted.base, wanted.corrector, *wanted.others) if part is not None]
    if wanted.family not in FAMILIES:
        return (f"this version cannot load {name!r} yet, do not download it for now; a later one will expect "
                f"{'; and '.join(parts)}; try {instead}")
    return (f"the weights of {name!r} are not here; expected {'; and '.join(parts)}; try to download them from "
            f"huggingface.co, or {instead}")


def _set(name: str) -> Published:
    if name not in PUBLISHED:
        raise UserError(f"there is no published set {name!r}; expected one of {', '.join(PUBLISHED)}")
    return PUBLISHED[name]
