"""Reward models as judges, several judges as one, and a judge that audits another.

| name | class | what it says |
|---|---|---|
| `clip-score` | `clip_score.ClipScore` | how well picture and text go together |
| `pick-score` | `pick_score.PickScore` | which picture people would pick |
| `aesthetic` | `aesthetic.Aesthetic` | how good it looks, whatever was asked for |
| `image-verifier` | `image_verifier.ImageVerifier` | ReflectionFlow's own rating |
| | `ensemble.Ensemble` | weighted mean of several |
| | `audited.Audited` | select by one, audit by another |

`sources.py` says where the weights come from. Nothing heavy is imported until a reward is loaded.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from ...types import UserError, Verifier
from .audited import Audited
from .ensemble import Ensemble
from .sources import SOURCES

__all__ = ["Audited", "Ensemble", "REWARDS", "SOURCES", "load_reward"]

REWARDS = {
    "clip-score": (".clip_score", "ClipScore"), "pick-score": (".pick_score", "PickScore"),
    "aesthetic": (".aesthetic", "Aesthetic"), "image-verifier": (".image_verifier", "ImageVerifier"),
}


def load_reward(name: str, folder: str | Path, **options: Any) -> Verifier:
    """A reward by its name, from a folder as it is published; `options` are those of its class's `from_folder`.

    UserError for a name that there is not, an option that it does not have, and all that loading meets.
    """
    if name not in list(REWARDS):
        raise UserError(f"there is no reward {name!r}; expected one of {', '.join(REWARDS)}")
    module, kind = REWARDS[name]
    make = getattr(import_module(module, __package__), kind).from_folder
    known = make.__func__.__kwdefaults__ or {}
    allowed = ["dtype", "device", "threshold", *known, *(["head"] if kind == "Aesthetic" else [])]
    if unknown := sorted(set(options) - set(allowed)):
        raise UserError(f"the reward {name!r} has no option {unknown[0]!r}; expected some of {', '.join(allowed)}")
    if kind == "Aesthetic" and "head" not in options:
        raise UserError(f"the reward {name!r} needs the option 'head'; expected the head's safetensors file; try the "
                        f"one of {SOURCES[name][0][1].repository}, converted once")
    return make(folder, **options)
