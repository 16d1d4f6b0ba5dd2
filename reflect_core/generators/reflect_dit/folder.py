"""A SANA model as a folder in diffusers' layout, plain or with Reflect-DiT's weights, read without network.

`transformer/` may hold either: a `config.json` with the keys of Reflect-DiT is the released checkpoint's
layout (`checkpoint.py`), in safetensors. With it the folder needs a SigLIP vision model in `image_encoder/`. A
checkpoint in `.bin` lies beside the model, in a folder of its own.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ...model_files import PICKLES, check_model_folder, check_weights, read_json
from ...types import UserError
from ..loading import load_part, quiet
from ..memory import enough_memory
from .checkpoint import STEM, check_config, load, weight_files, write_checkpoint
from .context import ContextEncoder

CURES = "offload=component or offload=layers, or dtype=torch.bfloat16"

VISION = "image_encoder"
_CLASSES = {
    "transformer": [("diffusers", "SanaTransformer2DModel")],
    "vae": [("diffusers", "AutoencoderDC")],
    "text_encoder": [("transformers", "Gemma2Model")],
    "tokenizer": [("transformers", kind) for kind in ("GemmaTokenizerFast", "GemmaTokenizer",
                                                      "PreTrainedTokenizerFast")],
    "scheduler": [("diffusers", "DPMSolverMultistepScheduler")],
}


def check_folder(folder: str | Path, checkpoint: str | Path | None = None, vision: str | Path | None = None
                 ) -> tuple[dict[str, Any], Path | None]:
    """The model index of a SANA folder, and the checkpoint of Reflect-DiT that goes with it, or None.

    `checkpoint`: its folder, where it does not lie in the model's own `transformer/`; `vision`: the picture encoder's,
    where it lies with neither. Reads configs and the headers of weights. Raises UserError, naming the file.
    """
    folder = Path(folder)
    config = read_json(folder / "transformer" / "config.json", "expected the config of a SANA transformer")
    own = config.get("reflection")
    if own and checkpoint is None and (pickles := sorted((folder / "transformer").glob(f"{STEM}*.bin"))):
        raise UserError(f"{pickles[0]}: a model's own folder must hold no pickles; expected the checkpoint in "
                        "safetensors there; try to move that folder out of the model and to name it with --lora, which "
                        "reads a .bin too, as weights alone")
    index = check_model_folder(folder, list(_CLASSES) + ([VISION] if own or (folder / VISION).is_dir() else []))
    for name, choices in _CLASSES.items():
        if tuple(index[name]) not in choices:
            library, kind = index[name]
            raise UserError(f"{folder / 'model_index.json'}: {name} is a {kind} of {library}; expected "
                            f"{' or '.join(map(' '.join, choices))}; Reflect-DiT is of the SANA family")
    place = Path(checkpoint) if checkpoint is not None else folder / "transformer" if own else None
    if place is None:
        return index, None
    place = place.parent if place.is_file() else place
    config = read_json(place / "config.json", "expected the one of a Reflect-DiT checkpoint")
    check_config(config, place)
    weight_files(place)
    eye = vision_folder(folder, place) if vision is None else Path(vision)
    if eye is None:
        raise UserError(f"{folder / VISION}: no such folder; expected SigLIP's vision model there (published: "
                        "google/siglip-large-patch16-384), which sees the flawed pictures")
    check_weights(_eye(eye))
    _check_widths(config, {"vision_feature_dim": vision_config(eye).get("hidden_size", 768),
                           **{name: read_json(folder / part / "config.json", "").get(key)
                              for name, part, key in (("caption_channels", "text_encoder", "hidden_size"),
                                                      ("in_channels", "vae", "latent_channels"))}}, place)
    return index, place


def vision_config(folder: str | Path) -> dict[str, Any]:
    """The config of SigLIP's vision model, from `image_encoder/` of a folder or, if there is none, from the folder
    itself, be it of the vision model alone or of all of SigLIP."""
    config = read_json(_eye(folder) / "config.json", "expected the one of a SigLIP model")
    return config.get("vision_config", config)


def _eye(folder: str | Path) -> Path:
    folder = Path(folder)
    return folder / VISION if (folder / VISION).is_dir() else folder


def _check_widths(config: dict[str, Any], made: dict[str, Any], place: Path) -> None:
    """UserError unless a checkpoint takes what the other parts make."""
    parts = {"vision_feature_dim": "picture encoder", "caption_channels": "text encoder", "in_channels": "autoencoder"}
    for name, width in made.items():
        if name in config and width is not None and config[name] != width:
            raise UserError(f"{place}: its {name} is {config[name]}, and the model's {parts[name]} makes {width}; "
                            f"expected parts that belong together; try the {parts[name]} that it was trained with "
                            "(published: SigLIP large of 384 pixels, and all else of SANA 1.6B)")


def load_vision(folder: str | Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """SigLIP's vision model from `image_encoder/` of a folder or, if there is none, from the folder itself."""
    vision_config(folder)
    place = _eye(folder)
    with quiet():
        return load_part(place.parent, place.name, ["transformers", "SiglipVisionModel"], dtype)


def published_vision_names(file: Path) -> None:
    """Give SigLIP's tensors the names that every version of transformers reads.

    transformers 5 saves a SiglipVisionModel without the `vision_model.` before its names, which transformers 4 would
    not find.
    """
    tensors = load_file(str(file))
    named = {k if k.startswith("vision_model.") else f"vision_model.{k}": t for k, t in tensors.items()}
    save_file(named, str(file), metadata={"format": "pt"})


def write_folder(folder: str | Path, *, transformer: nn.Module, vae: nn.Module, text_encoder: nn.Module, scheduler: Any,
                 tokenizer: Path, context: ContextEncoder | None = None, image_encoder: nn.Module | None = None,
                 settings: dict[str, Any] | None = None) -> Path:
    """Write a model folder, of plain SANA or in the layout of Reflect-DiT's checkpoint.

    Args: tokenizer, the folder that it lies in. settings: what becomes `reflect.json`, see
    `reflect_core.presets.load`.
    """
    import diffusers

    folder = Path(folder)
    parts = {"vae": vae, "text_encoder": text_encoder, "scheduler": scheduler, "transformer": transformer}
    if context is not None:
        parts[VISION] = image_encoder
    with quiet():
        for name, part in parts.items():
            part.save_pretrained(folder / name)
    if context is not None:
        published_vision_names(folder / VISION / "model.safetensors")
    if context is not None:
        write_checkpoint(folder / "transformer", transformer, context)
    shutil.copytree(tokenizer, folder / "tokenizer", ignore=shutil.ignore_patterns(*(f"*{p}" for p in PICKLES)))
    kind = read_json(Path(tokenizer) / "tokenizer_config.json", "").get("tokenizer_class", "PreTrainedTokenizerFast")
    index = {"_class_name": "SanaPipeline", "_diffusers_version": diffusers.__version__,
             "tokenizer": ["transformers", kind],
             **{name: ["transformers" if name in ("text_encoder", VISION) else "diffusers", type(part).__name__]
                for name, part in parts.items()}}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    if settings is not None:
        (folder / "reflect.json").write_text(json.dumps(settings, indent=2) + "\n")
    return folder


def vision_folder(folder: Path, checkpoint: Path) -> Path | None:
    """Where the picture encoder lies: with the model or with the checkpoint."""
    return next((place for place in (folder, checkpoint) if (place / VISION / "config.json").is_file()), None)


def load_components(folder: str | Path, checkpoint: str | Path | None = None, dtype: torch.dtype = torch.float32,
                    device: str | torch.device = "cpu", vision: str | Path | None = None) -> dict[str, Any]:
    """Every component by its name, models in evaluation mode and frozen; checked before the first weight is read.

    `checkpoint` and `vision` as in `check_folder`; with `vision` the picture encoder is loaded for plain SANA too.
    """
    folder = Path(folder)
    index, place = check_folder(folder, checkpoint, vision)
    parts: dict[str, Any] = {}
    with quiet(), enough_memory(CURES):
        for name in _CLASSES:
            if name != "transformer" or place is None:
                parts[name] = load_part(folder, name, index[name], dtype)
        if place is not None:
            parts["transformer"], parts["context"] = load(place, dtype)
        if vision is not None or place is not None:
            parts[VISION] = load_vision(vision if vision is not None else vision_folder(folder, place), dtype)
        return {name: part.to(device) if isinstance(part, nn.Module) else part for name, part in parts.items()}
