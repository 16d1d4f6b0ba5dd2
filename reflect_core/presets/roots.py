"""Folders in which models lie: one's own, and those of a ComfyUI with its extra_model_paths.yaml.

A root is a folder that somebody names: a ComfyUI, its `models`, any folder with subfolders of ComfyUI's names, or one
in which the models lie themselves; or an extra_model_paths.yaml. Each kind of model then has its places, in order.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..types import UserError

VARIABLE = "REFLECT_MODELS"
"""Environment: roots, separated as in PATH."""
KINDS = {"diffusion_models": ("diffusion_models", "unet", "unet_gguf"), "checkpoints": ("checkpoints",),
         "text_encoders": ("text_encoders", "clip", "clip_gguf"), "vae": ("vae",), "loras": ("loras",),
         "diffusers": ("diffusers",), "reflect": ("reflect",)}
"""Kind -> the names that its folder has, in ComfyUI's newer and older versions."""
_TOKENIZERS = {"tokenizer": Path("comfy", "sd1_tokenizer"),
               "tokenizer_2": Path("comfy", "text_encoders", "t5_tokenizer")}
"""Where ComfyUI itself carries CLIP-L's and T5's."""


class Roots:
    """Where to look for what. UserError for a root that is not there."""

    def __init__(self, roots: Iterable[str | Path] = ()) -> None:
        self.named = [Path(root).expanduser() for root in roots]
        self._places: dict[str, list[Path]] = {kind: [] for kind in KINDS}
        self._installations: list[Path] = []
        for root in self.named:
            if root.is_file() and root.suffix.lower() in (".yaml", ".yml"):
                self._read(root)
            elif root.is_dir():
                self._add(root)
            else:
                raise UserError(f"{root}: no such folder; expected one with models, such as ComfyUI's, or an "
                                f"extra_model_paths.yaml; try to check --models and the variable {VARIABLE}")

    @classmethod
    def of(cls, places: dict[str, list[Path]], installation: Path) -> Roots:
        """What a running ComfyUI says of itself: its folders by their kinds, and where it is."""
        roots = cls()
        roots._places |= places
        roots._installations.append(installation)
        return roots

    def places(self, kind: str) -> list[Path]:
        """The folders that there are for a kind of model, in the order in which they were named. Published sets may lie
        in either folder of whole models, and a LoRA's folder there too."""
        models = [*self._places["diffusers"], *self._places["reflect"]]
        merged = {"diffusers": models, "reflect": models, "loras": [*self._places["loras"], *models]}
        return [place for place in dict.fromkeys(merged.get(kind, self._places[kind])) if place.is_dir()]

    def tokenizer(self, name: str) -> Path | None:
        """The folder of `tokenizer` or `tokenizer_2` that a ComfyUI among the roots carries."""
        folders = (folder / _TOKENIZERS[name] for folder in self._installations)
        return next((folder for folder in folders if (folder / "tokenizer_config.json").is_file()), None)

    def _add(self, root: Path) -> None:
        comfy = root if (root / "comfy").is_dir() else root.parent if (root.parent / "comfy").is_dir() else None
        if comfy is not None:
            self._installations.append(comfy)
        if (extra := root / "extra_model_paths.yaml").is_file():
            self._read(extra)
        models = root / "models" if comfy == root and (root / "models").is_dir() else root
        for kind, names in KINDS.items():
            self._places[kind] += [*(models / name for name in names), models]

    def _read(self, file: Path) -> None:
        """An extra_model_paths.yaml, as ComfyUI reads it."""
        import yaml

        try:
            sections = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
            for section in sections.values():
                self._read_section(dict(section or {}), file.absolute().parent)
        except (OSError, ValueError, AttributeError, TypeError, yaml.YAMLError) as error:
            said = " ".join(str(error).split())[:200]
            raise UserError(f"{file}: cannot be read as ComfyUI's extra_model_paths.yaml ({said}); expected sections "
                            "with a base_path and folders for kinds of models; try to run ComfyUI with it") from error

    def _read_section(self, section: dict[str, Any], beside: Path) -> None:
        base = beside / os.path.expandvars(os.path.expanduser(section.pop("base_path", "") or ""))
        first = bool(section.pop("is_default", False))
        for name, lines in section.items():
            kind = next((kind for kind, names in KINDS.items() if name in names), None)
            if kind is not None:
                found = [base / line.strip() for line in lines.split("\n") if line.strip()]
                self._places[kind] = found + self._places[kind] if first else self._places[kind] + found
        self._installations.append(base)


def find_roots(given: Iterable[str] | None) -> Roots:
    """The roots that were named, and behind them those of the environment."""
    return Roots([*(given or ()), *filter(None, os.environ.get(VARIABLE, "").split(os.pathsep))])
