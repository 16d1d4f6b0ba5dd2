"""Weights of a judge's folder as its authors publish them: safetensors, and what to do where they are pickles."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...model_files import PICKLES, check_weights
from ...types import UserError

RECIPE = ("python -c \"import torch, safetensors.torch as s; s.save_file({{k: v.clone().contiguous() for k, v in "
          "torch.load('{source}', map_location='cpu', weights_only=True).items()}}, '{target}', {{'format': 'pt'}})\"")
"""Makes a safetensors file of a pickle of tensors; `weights_only` refuses anything else in it."""


def convert(pickle: Path) -> str:
    """The command that makes of a pickle the safetensors file that is read in its place."""
    stem = {"pytorch_model": "model"}.get(pickle.stem, pickle.stem)
    return RECIPE.format(source=pickle.as_posix(), target=pickle.with_name(f"{stem}.safetensors").as_posix())


def refuse_pickle(pickle: Path) -> UserError:
    """The error for a file that is published as a pickle only."""
    return UserError(f"{pickle}: is a pickle, which can run code when it is read; expected safetensors in its place; "
                     f"try a release that has them, or, once, if you trust the file: {convert(pickle)}")


def check_folder(folder: str | Path, what: str) -> Path:
    """The folder, if its weights are there as safetensors, and whole. Reads headers only.

    Raises UserError, which calls the model `what`. Pickles beside them, as many repositories have, are not read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected the one of {what}; try the path that it was downloaded to")
    pickles = sorted(file for file in folder.glob("pytorch_model*") if file.suffix in PICKLES)
    if pickles and not list(folder.glob("model*.safetensors*")):
        raise refuse_pickle(pickles[0])
    check_weights(folder)
    return folder


def stored(folder: Path, name: str) -> Tensor | None:
    """One tensor of a folder as it is stored, in fp32, or None: what a model in bf16 has rounded."""
    from safetensors import safe_open

    for file in sorted(folder.glob("model*.safetensors")):
        with safe_open(str(file), framework="pt") as opened:
            if name in opened.keys():
                return opened.get_tensor(name).to(torch.float32)
    return None
