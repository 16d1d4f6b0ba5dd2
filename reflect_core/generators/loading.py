"""Components of a model folder through diffusers and transformers: without network, and complete or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..types import UserError
from .memory import is_out_of_memory


def load_part(folder: Path, name: str, entry: list[str], dtype: torch.dtype, **more: Any) -> Any:
    """A component of a folder; a model in evaluation mode and frozen. `more` goes to `from_pretrained` of a model."""
    cls = class_of(entry)
    where = {"local_files_only": True}
    if "Tokenizer" in entry[1] or name == "scheduler":
        return wrapped(folder / name, lambda: cls.from_pretrained(folder / name, **where))
    where |= {dtype_word(entry[0] == "transformers"): dtype, "use_safetensors": True, "output_loading_info": True}
    model, info = wrapped(folder / name, lambda: cls.from_pretrained(folder / name, **where, **more))
    check_info(folder / name, entry[0], model, info)
    return model.eval().requires_grad_(False)


def dtype_word(of_transformers: bool) -> str:
    """What the dtype is called: transformers says `dtype` since 4.56 and warns about the older word, which diffusers
    still has."""
    import transformers

    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    return "dtype" if of_transformers and version >= (4, 56) else "torch_dtype"


def check_info(where: Path, library: str, model: torch.nn.Module, info: dict[str, Any]) -> None:
    """UserError unless a model's file had exactly its tensors. `info`: what the library says of the loading."""
    # Both libraries fill what a file lacks with random numbers and go on.
    missing = sorted(k for k in info["missing_keys"] if not k.endswith("embed_tokens.weight"))
    if missing:
        raise UserError(f"{where}: its weights lack {missing[0]}" +
                        (f" and {len(missing) - 1} more" if len(missing) > 1 else "") +
                        "; expected all that its config.json describes; try to download the model again")
    # And leave out what the config has no place for, as when it says fewer blocks than there are.
    # Another half of the same release is no surplus: T5's decoder, SigLIP's ears.
    own = {name for name, _ in model.named_children()} | {getattr(model, "base_model_prefix", "")}
    surplus = sorted(k for k in info["unexpected_keys"] if (library == "diffusers" or k.split(".")[0] in own)
                     and not k.endswith(("position_ids", "inv_freq", "embed_tokens.weight")))
    if surplus:
        raise UserError(f"{where}: its weights have {surplus[0]}" +
                        (f" and {len(surplus) - 1} more" if len(surplus) > 1 else "") +
                        ", which its config.json does not describe; expected weights and config of one model; try "
                        "to download the model again")


def class_of(entry: list[str]) -> type:
    """The class that an entry of model_index.json names."""
    import diffusers
    import transformers

    library, kind = entry
    return getattr(diffusers if library == "diffusers" else transformers, kind)


def wrapped(where: Path, load) -> Any:
    try:
        return load()
    except Exception as error:  # whatever the two libraries raise for a broken config or a wrong shape
        if is_out_of_memory(error):
            raise
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{where}: cannot be loaded ({said}); expected the files that diffusers saved; try "
                        "to download the model again") from error


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of the two libraries while a folder is read or written, no table of what a file has besides
    (`load_part` says what matters of it), and no advice to whoever casts; their settings come back."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    shown = [logging for logging in (of_diffusers, of_transformers) if logging.is_progress_bar_enabled()]
    for logging in shown:
        logging.disable_progress_bar()
    verbosity = [(logging, logging.get_verbosity()) for logging in (of_diffusers, of_transformers)]
    for logging, level in verbosity:
        logging.set_verbosity(max(level, logging.ERROR))
    try:
        yield
    finally:
        for logging, level in verbosity:
            logging.set_verbosity(level)
        for logging in shown:
            logging.enable_progress_bar()
