"""Where each component of a FLUX model comes from: a folder in diffusers layout, single files, or some of each.

A model is named by one path: a folder with a model_index.json, or a file, of the transformer alone or of several
components. Beside it `parts` may name others, by component; these go first. All is checked, and that the components
fit each other, before a weight is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...model_files import is_weight_file, read_json, why_no_file
from ...types import UserError
from ..part_folder import FolderPart, check_index, own_part, part_alone
from .configs import check_together
from .relatives import check_relative, kontext_said
from .single_files import FilePart, file_parts

COMPONENTS = ("transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")

CLASSES = {name: tuple((library, kind) for kind in kinds) for name, library, *kinds in (
    ("transformer", "diffusers", "FluxTransformer2DModel"),
    ("vae", "diffusers", "AutoencoderKL"),
    ("text_encoder", "transformers", "CLIPTextModel"),
    ("text_encoder_2", "transformers", "T5EncoderModel"),
    ("tokenizer", "transformers", "CLIPTokenizer", "CLIPTokenizerFast", "PreTrainedTokenizerFast"),
    ("tokenizer_2", "transformers", "T5TokenizerFast", "T5Tokenizer", "PreTrainedTokenizerFast"),
    ("scheduler", "diffusers", "FlowMatchEulerDiscreteScheduler"),
)}
"""The classes that a component may be of; the first is what a folder of it alone is read with."""
EDITOR = "FluxKontextPipeline"
"""Whose transformer has the class and the shapes of ours."""
FAMILY = "a corrector is of the FLUX.1 family"
_MODELS = ("transformer", "vae", "text_encoder", "text_encoder_2")
_TYPICAL = {"transformer": "flux1-dev.safetensors", "vae": "ae.safetensors", "text_encoder": "clip_l.safetensors",
            "text_encoder_2": "t5xxl_fp16.safetensors", "tokenizer": "a folder with CLIP-L's tokenizer",
            "tokenizer_2": "a folder with T5's tokenizer"}


Sources = dict[str, "FolderPart | FilePart"]


def check_folder(folder: str | Path, names: tuple[str, ...] = COMPONENTS) -> dict[str, Any]:
    """The model index of a folder that has every file and only classes of the FLUX.1 family, for the components that
    are named.

    Reads no weights. Raises UserError, naming the file.
    """
    return check_index(folder, names, CLASSES, FAMILY)


def find_sources(path: str | Path, parts: Mapping[str, str | Path] | None = None) -> Sources:
    """Component -> where it comes from; without a scheduler where only files are given. Reads headers only.

    Raises UserError for a file that is missing, broken, or of another model, a component that nobody has named, and
    parts that do not fit each other.
    """
    path, found = Path(path), {}
    for name, where in (parts or {}).items():
        if name not in COMPONENTS:
            raise UserError(f"--part {name}={where}: a FLUX model has no such component; expected one of "
                            f"{', '.join(COMPONENTS)}")
        found[name] = _part(name, Path(where))
    if path.is_file() or is_weight_file(path) and not (path / "model_index.json").is_file():
        found = file_parts(path) | found
        _check_relative(found)
        _check_whole(path, found)
    else:
        _check_relative(found)
        rest = tuple(name for name in COMPONENTS if name not in found)
        index = check_folder(path, rest)
        found |= {name: own_part(name, path, index) for name in rest}
    if any(isinstance(found[name], FilePart) for name in _MODELS) or parts:
        check_together({name: found[name].config for name in _MODELS}, {n: str(found[n].path) for n in _MODELS})
    return found


def _part(name: str, where: Path) -> FolderPart | FilePart:
    """A component that somebody has named by itself: its folder, a whole model's, or a file."""
    if where.is_dir():
        index = where / "model_index.json"
        if name == "transformer" and index.is_file() and read_json(index, "").get("_class_name") == EDITOR:
            raise UserError(kontext_said(where, "as its model_index.json says"))
        if is_weight_file(where) and not index.is_file() and not (where / "config.json").is_file():
            raise UserError(f"--part {name}={where}: {why_no_file(where)}, called like a file; expected a file; try "
                            "the file in it")
        return part_alone(name, where, CLASSES, FAMILY)
    if name not in _MODELS:
        raise UserError(f"--part {name}={where}: no such folder; expected one with the files of a {name}; try that of "
                        "FLUX.1-dev or of ComfyUI (comfy/sd1_tokenizer, comfy/text_encoders/t5_tokenizer)")
    parts = file_parts(where)
    if name not in parts:
        raise UserError(f"--part {name}={where}: holds {_listed(parts)}; expected {name}; try {_TYPICAL[name]}, or "
                        f"--part {next(iter(parts))}={where}")
    return parts[name]


def _check_relative(found: Sources) -> None:
    part = found.get("transformer")
    if isinstance(part, FilePart):
        check_relative(part)


def _check_whole(path: Path, found: Sources) -> None:
    missing = [name for name in COMPONENTS if name not in found and name != "scheduler"]
    if missing:
        held = _listed([name for name, part in found.items() if part.path == path])
        raise UserError(f"{path}: holds {held}; a model has more components, and nobody has named {_listed(missing)}; "
                        "expected each from a file or folder; try "
                        f"{' '.join(f'--part {name}=PATH' for name in missing)}: "
                        f"{', '.join(f'{name} {_TYPICAL[name]}' for name in missing)}")


def _listed(names: Any) -> str:
    names = list(names)
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else "nothing of FLUX.1"
