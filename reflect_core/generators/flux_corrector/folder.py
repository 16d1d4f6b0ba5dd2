"""A FLUX corrector as a folder: read it without network and pickles, and write one.

The layout is diffusers' own, as FLUX.1-dev has it, so `FluxPipeline.from_pretrained` reads it too; the
corrector's LoRA lies in `lora/pytorch_lora_weights.safetensors` and our settings in `reflect.json`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ...presets.load import check_model_folder
from ...types import UserError
from .lora import LORA_FILE, ConditionLora

COMPONENTS = ("transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")

_CLASSES = {
    "transformer": ("FluxTransformer2DModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "text_encoder_2": ("T5EncoderModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast", "PreTrainedTokenizerFast"),
    "tokenizer_2": ("T5TokenizerFast", "T5Tokenizer", "PreTrainedTokenizerFast"),
    "scheduler": ("FlowMatchEulerDiscreteScheduler",),
}


def load_components(folder: str | Path, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Every component of a folder by its diffusers name, on the CPU, models in evaluation mode.

    The whole folder is checked before the first weight is read. Raises UserError, naming the file.
    """
    folder = Path(folder)
    index = check_model_folder(folder, COMPONENTS)
    for name in COMPONENTS:
        if index[name][1] not in _CLASSES[name]:
            raise UserError(f"{folder / 'model_index.json'}: {name} is a {index[name][1]}; expected "
                            f"{' or '.join(_CLASSES[name])}; a corrector is of the FLUX.1 family")
    with _quiet():
        return {name: _load(folder, name, index[name], dtype) for name in COMPONENTS}


def folder_lora(folder: str | Path) -> Path | None:
    """The LoRA file that a model folder carries, or None."""
    file = Path(folder) / "lora" / LORA_FILE
    return file if file.is_file() else None


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
    with _quiet():
        for name, part in (("transformer", transformer), ("vae", vae), ("text_encoder", text_encoder),
                           ("text_encoder_2", text_encoder_2), ("scheduler", scheduler)):
            part.save_pretrained(folder / name)
    _published_clip_names(folder / "text_encoder" / "model.safetensors")
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


def _load(folder: Path, name: str, entry: list[str], dtype: torch.dtype) -> Any:
    import diffusers
    import transformers

    library, kind = entry
    cls = getattr(diffusers if library == "diffusers" else transformers, kind)
    where = {"local_files_only": True}
    if "tokenizer" in name or name == "scheduler":
        return _wrapped(folder / name, lambda: cls.from_pretrained(folder / name, **where))
    # transformers says `dtype` since 4.56 and warns about the older word, which diffusers still has.
    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    new_word = library == "transformers" and version >= (4, 56)
    where |= {"dtype" if new_word else "torch_dtype": dtype, "use_safetensors": True,
              "output_loading_info": True}
    model, info = _wrapped(folder / name, lambda: cls.from_pretrained(folder / name, **where))
    # Both libraries fill what a file lacks with random numbers and go on.
    missing = sorted(k for k in info["missing_keys"] if not k.endswith("embed_tokens.weight"))
    if missing:
        raise UserError(f"{folder / name}: its weights lack {missing[0]}" +
                        (f" and {len(missing) - 1} more" if len(missing) > 1 else "") +
                        "; expected all that its config.json describes; try to download the model again")
    return model.eval().requires_grad_(False)


def _wrapped(where: Path, load) -> Any:
    try:
        return load()
    except Exception as error:  # whatever the two libraries raise for a broken config or a wrong shape
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{where}: cannot be loaded ({said}); expected the files that diffusers saved; try "
                        "to download the model again") from error


def _published_clip_names(file: Path) -> None:
    """Give CLIP's tensors the names that every version of transformers reads.

    transformers 5 saves a CLIPTextModel without the `text_model.` before its names, which transformers 4
    would not find and would fill with random numbers.
    """
    tensors = load_file(str(file))
    named = {k if k.startswith("text_model.") else f"text_model.{k}": t for k, t in tensors.items()}
    save_file(named, str(file), metadata={"format": "pt"})


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of transformers while a folder is read or written; its setting comes back."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
