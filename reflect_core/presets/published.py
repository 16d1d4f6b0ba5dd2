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
    patterns: tuple[str, ...] = ("*",)
    """The files of the repository that are needed."""
    inside: str = ""
    """The folder of the repository in which they lie, and which becomes the folder `name`; '' for all of it."""

    @property
    def said(self) -> str:
        return f"{self.repository}, its folder {self.inside}" if self.inside else self.repository


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

    @property
    def sources(self) -> tuple[Source, ...]:
        return tuple(one for one in (self.base, self.corrector, *self.others) if one is not None)


_PARTS = tuple(f"{part}/*{ending}" for part in ("transformer", "vae", "text_encoder", "text_encoder_2", "scheduler",
                                                "tokenizer", "tokenizer_2")
               for ending in (".safetensors", ".json", ".txt", ".model"))
"""Of a repository in diffusers layout only what its components need: none of the same weights in other files."""
_AROUND = tuple(pattern for pattern in _PARTS if not pattern.startswith("transformer/"))
"""Of SANA, whose transformer Reflect-DiT's checkpoint takes the place of."""

PUBLISHED = {
    "flux-corrector": Published(
        "FluxPipeline",
        Source("black-forest-labs/FLUX.1-dev", "diffusers", "FLUX.1-dev", "model_index.json", "34 GB",
               "FLUX.1 [dev] Non-Commercial License", ("model_index.json", *_PARTS)),
        Source("diffusion-cot/FLUX-Corrector", "loras", "FLUX-Corrector", "pytorch_lora_weights.safetensors", "464 MB",
               "no licence is stated", ("pytorch_lora_weights.safetensors",)),
        "shapes-flux"),
    "reflect-dit": Published(
        "SanaPipeline",
        Source("Efficient-Large-Model/Sana_1600M_1024px_MultiLing_diffusers", "diffusers",
               "Sana_1600M_1024px_MultiLing_diffusers", "model_index.json", "6.5 GB",
               "licence: NVIDIA's NSCL v2-custom, and Gemma's terms", ("model_index.json", *_AROUND)),
        Source("jacklishufan/reflect-dit", "reflect", "reflect-dit", "config.json",
               "about 3.5 GB", "no licence is stated", ("*.json", "*.safetensors", "*.bin"), "dit/transformer"),
        "shapes-sana",
        (Source("google/siglip-large-patch16-384", "reflect", "reflect-dit/image_encoder", "config.json",
                "2.6 GB", "Apache-2.0", ("config.json", "model.safetensors")),)),
    "kontext": Published(
        "FluxKontextPipeline",
        Source("black-forest-labs/FLUX.1-Kontext-dev", "diffusers", "FLUX.1-Kontext-dev", "model_index.json", "34 GB",
               "FLUX.1 [dev] Non-Commercial License", ("model_index.json", *_PARTS)),
        None, "shapes-flux"),
    "qwen-image-edit": Published(
        "QwenImageEditPlusPipeline",
        Source("Qwen/Qwen-Image-Edit-2509", "diffusers", "Qwen-Image-Edit-2509", "model_index.json", "58 GB",
               "licence: Apache-2.0", ("model_index.json", *_PARTS, "processor/*.json", "processor/*.txt",
                                       "processor/*.jinja")),
        None, "shapes-flux"),
}
"""The sizes are of what is needed of each repository, as its pages on the hub list them: of FLUX.1-dev and Kontext 23.8
GB of transformer, 9.5 of T5, 0.4 of the rest; of SANA Gemma 2 in bf16, 5.2 GB, and the autoencoder, 1.2 (left out are
its fp16 copies, see `download.VARIANTS`, and its transformer, 6.4 in fp32); of Qwen-Image-Edit 57.7 in all. The files
of Reflect-DiT's checkpoint are not known here: its size is that of what the official code saves."""


def published_names() -> list[str]:
    return sorted(PUBLISHED)


def find_source(source: Source, roots: Sequence[Path]) -> Path | None:
    """The folder of a source below one of the folders."""
    return next((root / source.name for root in roots if (root / source.name / source.file).is_file()), None)


def how_to_get(name: str, models: Path) -> str:
    """What is needed and where it goes, for somebody whose ComfyUI has its models in `models`."""
    wanted = published_set(name)
    instead = (f"the model {wanted.small!r}, which comes with the pack and runs the same workflow with the judge "
               "'shapes'")
    parts = [f"{part.said} ({part.size}; {part.licence}) as {models / part.kind / part.name}, with {part.file}"
             for part in wanted.sources]
    if wanted.family not in FAMILIES:
        return (f"this version cannot load {name!r} yet, do not download it for now; a later one will expect "
                f"{'; and '.join(parts)}; try {instead}")
    # Everything below `models` lies as the command puts it there.
    return (f"the weights of {name!r} are not here; expected {'; and '.join(parts)}; try 'python -m reflect_core "
            f"download {name} --to \"{models}\"' with ComfyUI's Python in this pack's folder, which asks first, or "
            f"{instead}")


def repository(name: str) -> Source:
    """A repository of its own, whatever model it has: in diffusers layout, or one of transformers. What stands behind
    its id is a folder in it, as in `diffusion-cot/Reflection-Generator/infer/30000`."""
    owner, own, *inside = *name.strip("/").split("/", 2), ""
    if not own:
        raise UserError(f"{name!r} is no repository; expected an id such as Qwen/Qwen2.5-VL-7B-Instruct; try the "
                        "one that its page shows")
    return Source(f"{owner}/{own}", "diffusers", own, "", "size: see its page", "licence: see its page",
                  ("*.json", "*.jinja", "*.safetensors", "*.txt", "*.model"), inside[0])


def published_set(name: str) -> Published:
    if name not in PUBLISHED:
        raise UserError(f"there is no published set {name!r}; expected one of {', '.join(PUBLISHED)}")
    return PUBLISHED[name]
