"""Find a model folder by name or path and check it before any weight is read.

A model folder is in diffusers layout. It loads only from safetensors: a pickle can run code when
it is read, so a folder that holds one is refused, whatever else is in it.
"""

from __future__ import annotations

from pathlib import Path

from reflect_core.types import UserError

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def check_safetensors(path: str | Path) -> Path:
    """The path of a whole, readable safetensors file. Raises UserError for anything else."""
    with _opened(path):
        return Path(path)


def read_safetensors(path: str | Path) -> tuple[dict, dict[str, str]]:
    """All tensors of a file (CPU) and its metadata. Raises UserError for anything but safetensors."""
    with _opened(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}


def _opened(path: str | Path):
    from safetensors import safe_open  # torch comes with it: not at package import

    path = Path(path)
    if path.suffix.lower() in PICKLES:
        raise UserError(f"{path}: is a pickle ({path.suffix}), which can run code when it is read; expected a "
                        ".safetensors file; try a release of the model that has one")
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a .safetensors file; try another path, or download "
                        "the model again")
    try:
        return safe_open(str(path), framework="pt")
    except Exception as error:  # safetensors raises its own type, whose module has moved between versions
        raise UserError(f"{path}: is not a whole safetensors file ({error}); its size is "
                        f"{path.stat().st_size} bytes; try to copy or download it again") from error
