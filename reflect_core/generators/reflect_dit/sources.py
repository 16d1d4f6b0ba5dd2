"""Where each component of a SANA model comes from, plain or with Reflect-DiT's weights. All is checked here.

A model is named by its folder in diffusers layout. Its transformer may be Reflect-DiT's: a config.json with its keys
tells (`checkpoint.py`). Such a checkpoint holds all of SANA's tensors, so where it lies by itself the model's own
transformer is not read and need not be there. It sees pictures with a SigLIP in `image_encoder/`, which lies with the
model or with the checkpoint. `parts` may name any component elsewhere, as a folder: ComfyUI itself does not know SANA,
so that there are no single files that people have for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...model_files import check_weights, read_json
from ...types import UserError
from ..part_folder import FolderPart, check_index, own_part, part_alone
from .checkpoint import STEM, check_config, weight_files

VISION = "image_encoder"
CLASSES = {
    "transformer": (("diffusers", "SanaTransformer2DModel"),),
    "vae": (("diffusers", "AutoencoderDC"),),
    "text_encoder": (("transformers", "Gemma2Model"),),
    "tokenizer": tuple(("transformers", kind) for kind in ("GemmaTokenizerFast", "GemmaTokenizer",
                                                           "PreTrainedTokenizerFast")),
    "scheduler": (("diffusers", "DPMSolverMultistepScheduler"),),
}
"""The classes that a component may be of; the first is what a folder of it alone is read with."""
EYE = ("transformers", "SiglipVisionModel")
FAMILY = "Reflect-DiT is of the SANA family"

Sources = dict[str, FolderPart]


def find_sources(folder: str | Path, checkpoint: str | Path | None = None,
                 parts: Mapping[str, str | Path] | None = None) -> Sources:
    """Component -> where it comes from. Reads configs and the headers of weights.

    Args:
        checkpoint: Reflect-DiT's folder, or a file in it, where it is not the model's own `transformer/`.
        parts: components that lie elsewhere, by name, each its own folder or that of a whole model.

    Raises UserError, naming the file, for what is missing, broken, of another family, or does not fit the rest.
    """
    folder, parts = Path(folder), {name: Path(where) for name, where in (parts or {}).items()}
    if not folder.is_dir():  # before anything that is to go with it
        raise UserError(f"{folder}: no such folder; expected a model in diffusers layout")
    for name, where in parts.items():
        _check_part(name, where)
    own = checkpoint is None and "transformer" not in parts
    place = folder / "transformer" if own else _place(checkpoint, parts.pop("transformer", None))
    config = read_json(place / "config.json", "expected the config of a SANA transformer; try "
                       "--lora with Reflect-DiT's checkpoint, or to download the model whole" if checkpoint is None else
                       "expected the one of a Reflect-DiT checkpoint")
    reflects = checkpoint is not None or bool(config.get("reflection"))
    if reflects and own and (pickles := sorted(place.glob(f"{STEM}*.bin"))):
        raise UserError(f"{pickles[0]}: a model's own folder must hold no pickles; expected the checkpoint in "
                        "safetensors there; try to move that folder out of the model and to name it with --lora, which "
                        "reads a .bin too, as weights alone")
    rest = [name for name in CLASSES if name not in parts and (own or name != "transformer")]
    index = check_index(folder, rest, CLASSES, FAMILY)
    found = {name: own_part(name, folder, index) for name in rest}
    found |= {name: part_alone(name, where, CLASSES, FAMILY) for name, where in parts.items() if name != VISION}
    found["transformer"] = FolderPart("transformer", place, list(CLASSES["transformer"][0]), config)
    if reflects:
        check_config(config, place)
        weight_files(place)
    elif not own:
        part_alone("transformer", place, CLASSES, FAMILY)
    eye = parts.get(VISION) or _vision_folder(folder, place)
    if reflects and eye is None:
        raise UserError(f"{folder / VISION}: no such folder; expected SigLIP's vision model there (published: "
                        "google/siglip-large-patch16-384), which sees the flawed pictures")
    if eye is not None and (reflects or VISION in parts):
        found[VISION] = vision_part(eye)
    _check_widths(found)
    return found


def vision_part(folder: str | Path) -> FolderPart:
    """SigLIP's vision model in `image_encoder/` of a folder or, if there is none, in the folder itself, be it the
    vision model alone or all of SigLIP. UserError unless its weights are whole."""
    folder = Path(folder)
    folder = folder / VISION if (folder / VISION).is_dir() else folder
    config = read_json(folder / "config.json", "expected the one of a SigLIP model")
    check_weights(folder)
    return FolderPart(VISION, folder, list(EYE), config.get("vision_config", config))


def _check_part(name: str, where: Path) -> None:
    if name not in (*CLASSES, VISION):
        raise UserError(f"--part {name}={where}: a SANA model has no such component; expected one of "
                        f"{', '.join((*CLASSES, VISION))}")
    if not where.is_dir():
        raise UserError(f"--part {name}={where}: {'is a file' if where.exists() else 'no such folder'}; a SANA model's "
                        "components are folders in diffusers' layout; expected one with the files of it; try that of "
                        "another copy of the model")


def _place(checkpoint: str | Path | None, transformer: Path | None) -> Path:
    """The folder of a transformer that lies elsewhere."""
    if checkpoint is not None and transformer is not None:
        raise UserError(f"--lora {checkpoint} and --part transformer={transformer}: each is a whole transformer; "
                        "expected one of them; try the checkpoint of Reflect-DiT alone")
    place = Path(checkpoint if transformer is None else transformer)
    place = place.parent if place.is_file() else place
    return place / "transformer" if (place / "model_index.json").is_file() else place


def _vision_folder(folder: Path, checkpoint: Path) -> Path | None:
    """Where the picture encoder lies: with the model or with the checkpoint."""
    return next((place for place in (folder, checkpoint) if (place / VISION / "config.json").is_file()), None)


def _check_widths(found: Sources) -> None:
    """UserError unless the transformer takes what the other parts make."""
    transformer = found["transformer"]
    made: dict[str, tuple[str, Any]] = {"caption_channels": ("text encoder", found["text_encoder"].config.get(
        "hidden_size")), "in_channels": ("autoencoder", found["vae"].config.get("latent_channels"))}
    if VISION in found:
        made["vision_feature_dim"] = "picture encoder", found[VISION].config.get("hidden_size", 768)
    for name, (part, width) in made.items():
        wanted = transformer.config.get(name)
        if None not in (wanted, width) and wanted != width:
            raise UserError(f"{transformer.folder}: its {name} is {wanted}, and the model's {part} makes {width}; "
                            f"expected parts that belong together; try the {part} that it was trained with "
                            "(published: SigLIP large of 384 pixels, and all else of SANA 1.6B)")
