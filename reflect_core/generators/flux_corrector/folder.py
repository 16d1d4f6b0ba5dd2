"""A FLUX corrector as a folder: read it without network and pickles, and write one.

The layout is diffusers' own, as FLUX.1-dev has it, so `FluxPipeline.from_pretrained` reads it too; the
corrector's LoRA lies in `lora/pytorch_lora_weights.safetensors` and our settings in `reflect.json`. Components may
come from elsewhere too, see `sources.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ...model_files import check_safetensors, read_json
from ...presets.load import read_settings
from ..loading import class_of, load_part, quiet, wrapped
from ..memory import enough_memory
from ..quantise import WHILE_LOADING, check_quantise, load_packed, placed
from .lora import ConditionLora
from .lora_file import LORA_FILE, PEFT_FILE
from .single_files import FilePart, load_file_part, make_scheduler, outline
from .sources import CLASSES, COMPONENTS, FolderPart, check_folder, find_sources

__all__ = ["check_folder", "folder_lora", "load_components", "load_outlines", "load_text_encoder", "lora_options",
           "save_text_encoder", "write_folder"]


PACKED = ("transformer", "text_encoder_2")
"""Components whose weights may be kept in fewer bits."""


def load_components(folder: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu",
                    encoder_device: str | torch.device | None = None,
                    parts: Mapping[str, str | Path] | None = None, quantise: str = "none",
                    pack_on: str | torch.device | None = None) -> dict[str, Any]:
    """Every component of a model by its diffusers name, models in evaluation mode and frozen.

    All is checked before the first weight is read, and each model is on its device before the next is read.
    Raises UserError, naming the file.

    Args:
        folder: or a single file, see `sources.py`; `parts`: components that come from elsewhere.
        encoder_device: where the two text encoders go; None: `device`, like the rest.
        quantise: how the weights of transformer and T5 are kept, see `generators/quantise.py`. A transformer in GGUF
            stays as it is packed there.
        pack_on: where bitsandbytes packs them, each part by itself, before it goes to its `device`; None: there.
    """
    check_quantise(quantise, device if pack_on is None else pack_on)
    sources, loaded = find_sources(folder, parts), {}
    with quiet(), enough_memory():
        for name in COMPONENTS:
            where = encoder_device if encoder_device is not None and name.startswith("text_encoder") else device
            if name not in sources:
                loaded[name] = make_scheduler(sources["transformer"].config)
            else:
                way = quantise if name in PACKED and not _is_packed(sources[name]) else "none"
                loaded[name] = _load(sources[name], dtype, where, way, pack_on)
    _fit_tokenizer(loaded["tokenizer"], loaded["text_encoder"])
    return loaded


def _load(part: FolderPart | FilePart, dtype: torch.dtype, device: str | torch.device, quantise: str,
          pack_on: str | torch.device | None) -> Any:
    """One component, a model on its device."""
    if isinstance(part, FilePart):
        where = pack_on if quantise in WHILE_LOADING and pack_on is not None else device
        return placed(load_file_part(part, dtype, where, quantise), quantise, device, pack_on)
    folder, name = part.folder.parent, part.folder.name
    if not part.config:  # a tokenizer or scheduler
        return load_part(folder, name, part.entry, dtype)
    return load_packed(folder, name, part.entry, dtype, device, quantise, pack_on)


def _is_packed(part: FolderPart | FilePart) -> bool:
    """Whether it stays as GGUF packed it, as a transformer does; T5 in GGUF is unpacked when it is loaded."""
    return isinstance(part, FilePart) and part.is_packed and part.name == "transformer"


def _fit_tokenizer(tokenizer: Any, clip: nn.Module) -> None:
    """CLIP's tokenizer as others carry it cuts later than CLIP, or never; `TextEncoders` asks it where to."""
    most = clip.config.max_position_embeddings
    if tokenizer.model_max_length > most:
        tokenizer.model_max_length = most


def load_text_encoder(folder: str | Path, name: str) -> nn.Module:
    """`text_encoder` or `text_encoder_2` of a folder that need not be a whole model, in fp32 and frozen.

    Raises UserError, naming the file.
    """
    folder = Path(folder)
    read_json(folder / name / "config.json", "expected a folder with text encoders as diffusers lays them")
    check_safetensors(folder / name / "model.safetensors")
    with quiet():
        return load_part(folder, name, list(CLASSES[name][0]), torch.float32)


def save_text_encoder(folder: str | Path, name: str, part: nn.Module) -> None:
    """Write one into a folder, so that transformers 4 and 5 read it alike."""
    with quiet():
        part.save_pretrained(Path(folder) / name)
    if name == "text_encoder":
        _published_clip_names(Path(folder) / name / "model.safetensors")


def load_outlines(folder: str | Path, parts: Mapping[str, str | Path] | None = None) -> dict[str, nn.Module]:
    """The transformer and the autoencoder as their configs describe them, without weights (meta device).

    So that what must fit to them can be checked before tens of gigabytes are read. For `parts` see `load_components`.
    """
    sources, outlines = find_sources(folder, parts), {}
    for name in ("transformer", "vae"):
        part = sources[name]
        if isinstance(part, FilePart):
            outlines[name] = wrapped(part.path, lambda part=part: outline(part))
            continue

        def build(part=part) -> nn.Module:
            with torch.device("meta"):
                return class_of(part.entry).from_config(part.config)

        outlines[name] = wrapped(part.folder / "config.json", build)
    return outlines


def folder_lora(folder: str | Path) -> Path | None:
    """The LoRA file that a model folder carries, or None."""
    files = (Path(folder) / "lora" / name for name in (LORA_FILE, PEFT_FILE))
    return next((file for file in files if file.is_file()), None)


def lora_options(lora: str | Path) -> dict[str, Any]:
    """The options in the `reflect.json` beside a LoRA, or {}: how it was trained, and so how to draw with it."""
    path = Path(lora)
    return read_settings(path if path.is_dir() else path.parent)[1]


def write_folder(folder: str | Path, *, transformer, vae, text_encoder, text_encoder_2, scheduler,
                 tokenizers: tuple[str, str] = ("PreTrainedTokenizerFast", "PreTrainedTokenizerFast"),
                 lora: ConditionLora | None = None, settings: dict[str, Any] | None = None) -> Path:
    """Write a model folder that transformers 4 and 5 read alike; the tokenizers are written by their maker.

    Args:
        tokenizers: classes of what lies in, or will be put into, `tokenizer/` and `tokenizer_2/`.
        settings: what becomes `reflect.json`, see `reflect_core.presets.load`.
    """
    import diffusers

    folder = Path(folder)
    with quiet():
        for name, part in (("transformer", transformer), ("vae", vae), ("scheduler", scheduler)):
            part.save_pretrained(folder / name)
    for name, part in (("text_encoder", text_encoder), ("text_encoder_2", text_encoder_2)):
        save_text_encoder(folder, name, part)
    index = {"_class_name": "FluxPipeline", "_diffusers_version": diffusers.__version__,
             "feature_extractor": [None, None], "image_encoder": [None, None],
             "scheduler": ["diffusers", type(scheduler).__name__],
             "text_encoder": ["transformers", type(text_encoder).__name__],
             "text_encoder_2": ["transformers", type(text_encoder_2).__name__],
             "tokenizer": ["transformers", tokenizers[0]], "tokenizer_2": ["transformers", tokenizers[1]],
             "transformer": ["diffusers", type(transformer).__name__],
             "vae": ["diffusers", type(vae).__name__]}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    if settings is not None:
        (folder / "reflect.json").write_text(json.dumps(settings, indent=2) + "\n")
    if lora is not None:
        lora.save(folder / "lora")
    return folder


def _published_clip_names(file: Path) -> None:
    """Give CLIP's tensors the names that every version of transformers reads.

    transformers 5 saves a CLIPTextModel without the `text_model.` before its names, which transformers 4
    would not find and would fill with random numbers.
    """
    tensors = load_file(str(file))
    named = {k if k.startswith("text_model.") else f"text_model.{k}": t for k, t in tensors.items()}
    save_file(named, str(file), metadata={"format": "pt"})
