"""A SANA model as a folder in diffusers' layout, plain or with Reflect-DiT's weights, read without network.

What of it lies where, and what goes together, is in `sources.py`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ...model_files import PICKLES, read_json
from ..loading import load_part, quiet
from ..memory import enough_memory
from ..part_folder import FolderPart
from ..quantise import check_quantise, load_packed, packed, placed
from .checkpoint import load, write_checkpoint
from .context import ContextEncoder
from .sources import VISION, find_sources, vision_part

PACKED = ("transformer", "text_encoder")
"""Components whose weights may be kept in fewer bits."""
ENCODERS = ("text_encoder", VISION)


def load_vision(folder: str | Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """SigLIP's vision model from a folder, see `vision_part`."""
    with quiet():
        return _load(vision_part(folder), dtype, "cpu")


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


def load_components(folder: str | Path, checkpoint: str | Path | None = None, dtype: torch.dtype = torch.float32,
                    device: str | torch.device = "cpu", parts: Mapping[str, str | Path] | None = None,
                    encoder_device: str | torch.device | None = None, quantise: str = "none",
                    pack_on: str | torch.device | None = None) -> dict[str, Any]:
    """Every component by its name, models in evaluation mode and frozen, `context` too where the transformer is
    Reflect-DiT's; checked before the first weight is read, and each on its device before the next is read.

    Args:
        checkpoint, parts: as in `find_sources`; with `parts` the picture encoder is loaded for plain SANA too.
        encoder_device: where text and picture encoder go; None: `device`, like the rest.
        quantise: how the weights of transformer and Gemma are kept, see `generators/quantise.py`.
        pack_on: where bitsandbytes packs them, each part by itself, before it goes to its `device`; None: there.
    """
    check_quantise(quantise, device if pack_on is None else pack_on)
    loaded: dict[str, Any] = {}
    with quiet(), enough_memory():
        for name, part in find_sources(folder, checkpoint, parts).items():
            where = encoder_device if encoder_device is not None and name in ENCODERS else device
            way = quantise if name in PACKED else "none"
            if name == "transformer" and part.config.get("reflection"):
                transformer, context = load(part.folder, dtype)
                packs = where if pack_on is None else pack_on
                transformer = packed(transformer, way, dtype, packs)
                loaded[name], loaded["context"] = placed(transformer, way, where, pack_on), context.to(where)
            else:
                loaded[name] = _load(part, dtype, where, way, pack_on)
    return loaded


def _load(part: FolderPart, dtype: torch.dtype, device: str | torch.device, quantise: str = "none",
          pack_on: str | torch.device | None = None) -> Any:
    """One component, a model on its device."""
    folder, name = part.folder.parent, part.folder.name
    if not part.config:  # the tokenizer or scheduler
        return load_part(folder, name, part.entry, dtype)
    return load_packed(folder, name, part.entry, dtype, device, quantise, pack_on)
