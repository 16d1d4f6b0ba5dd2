"""A FLUX corrector as a folder: read it without network and pickles, and write one.

The layout is diffusers' own, as FLUX.1-dev has it, so `FluxPipeline.from_pretrained` reads it too; the
corrector's LoRA lies in `lora/pytorch_lora_weights.safetensors` and our settings in `reflect.json`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ...model_files import check_model_folder, check_safetensors, read_json
from ...presets.load import read_settings
from ...types import UserError
from ..loading import class_of, load_part, quiet, wrapped
from ..memory import enough_memory
from .lora import ConditionLora
from .lora_file import LORA_FILE, PEFT_FILE

COMPONENTS = ("transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")

_CLASSES = {name: tuple((library, kind) for kind in kinds) for name, library, *kinds in (
    ("transformer", "diffusers", "FluxTransformer2DModel"),
    ("vae", "diffusers", "AutoencoderKL"),
    ("text_encoder", "transformers", "CLIPTextModel"),
    ("text_encoder_2", "transformers", "T5EncoderModel"),
    ("tokenizer", "transformers", "CLIPTokenizer", "CLIPTokenizerFast", "PreTrainedTokenizerFast"),
    ("tokenizer_2", "transformers", "T5TokenizerFast", "T5Tokenizer", "PreTrainedTokenizerFast"),
    ("scheduler", "diffusers", "FlowMatchEulerDiscreteScheduler"),
)}


def check_folder(folder: str | Path) -> dict[str, Any]:
    """The model index of a folder that has every file and only classes of the FLUX.1 family.

    Reads no weights. Raises UserError, naming the file.
    """
    folder = Path(folder)
    index = check_model_folder(folder, COMPONENTS)
    for name in COMPONENTS:
        library, kind = index[name]
        if (library, kind) not in _CLASSES[name]:
            choices = " or ".join(" ".join(choice) for choice in _CLASSES[name])
            raise UserError(f"{folder / 'model_index.json'}: {name} is a {kind} of {library}; expected {choices}; a "
                            "corrector is of the FLUX.1 family")
    return index


def load_components(folder: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu",
                    encoder_device: str | torch.device | None = None) -> dict[str, Any]:
    """Every component of a folder by its diffusers name, models in evaluation mode and frozen.

    The whole folder is checked before the first weight is read, and each model is on its device before
    the next is read. Raises UserError, naming the file.

    Args:
        encoder_device: where the two text encoders go; None: `device`, like the rest.
    """
    folder = Path(folder)
    index = check_folder(folder)
    parts = {}
    with quiet(), enough_memory():
        for name in COMPONENTS:
            where = encoder_device if encoder_device is not None and name.startswith("text_encoder") else device
            part = load_part(folder, name, index[name], dtype)
            parts[name] = part.to(where) if isinstance(part, nn.Module) else part
    return parts


def load_text_encoder(folder: str | Path, name: str) -> nn.Module:
    """`text_encoder` or `text_encoder_2` of a folder that need not be a whole model, in fp32 and frozen.

    Raises UserError, naming the file.
    """
    folder = Path(folder)
    read_json(folder / name / "config.json", "expected a folder with text encoders as diffusers lays them")
    check_safetensors(folder / name / "model.safetensors")
    with quiet():
        return load_part(folder, name, list(_CLASSES[name][0]), torch.float32)


def save_text_encoder(folder: str | Path, name: str, part: nn.Module) -> None:
    """Write one into a folder, so that transformers 4 and 5 read it alike."""
    with quiet():
        part.save_pretrained(Path(folder) / name)
    if name == "text_encoder":
        _published_clip_names(Path(folder) / name / "model.safetensors")


def load_outlines(folder: str | Path) -> dict[str, nn.Module]:
    """The transformer and the autoencoder as their config.json describes them, without weights (meta device).

    So that what must fit to them can be checked before tens of gigabytes are read.
    """
    folder, outlines = Path(folder), {}
    index = check_folder(folder)
    for name in ("transformer", "vae"):
        cls = class_of(index[name])
        config = read_json(folder / name / "config.json", "")

        def build(cls=cls, config=config) -> nn.Module:
            with torch.device("meta"):
                return cls.from_config(config)

        outlines[name] = wrapped(folder / name / "config.json", build)
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
