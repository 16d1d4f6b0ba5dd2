"""Checkpoints: weights, averages and optimiser state as one safetensors file, written atomically."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from reflect_core.types import UserError

_NAME = re.compile(r"step-(\d+)\.safetensors")
_FREE = {"out", "steps", "save_every", "sample_every", "log_every", "keep", "compile"}
"""Settings that may change between an interruption and the resumption."""


def latest_checkpoint(out: Path) -> Path | None:
    """The newest whole checkpoint of a run, by number (not by the name's spelling)."""
    found = [(int(m[1]), p) for p in out.glob("step-*.safetensors") if (m := _NAME.fullmatch(p.name))]
    return max(found)[1] if found else None


def save_checkpoint(out: Path, step: int, config, optimizers, averages) -> None:
    """Write `step-N.safetensors`; a crash on the way leaves the older ones as they were."""
    tensors = {f"weights/{n}": p.detach() for n, p in optimizers.named.items()}
    tensors |= {f"mean/{n}": t for n, t in averages.mean.items()}
    tensors |= {f"optimizer/{n}": t for n, t in optimizers.state().items()}
    final = out / f"step-{step}.safetensors"
    partial = final.with_suffix(".partial")
    metadata = {"step": str(step), "config": json.dumps(config.to_json(), sort_keys=True)}
    save_file({k: t.contiguous() for k, t in tensors.items()}, partial, metadata)
    with open(partial, "rb") as handle:
        os.fsync(handle.fileno())
    os.replace(partial, final)
    kept = sorted((int(m[1]), p) for p in out.glob("step-*.safetensors") if (m := _NAME.fullmatch(p.name)))
    for _, old in kept[: -config.keep]:
        old.unlink()


def load_checkpoint(path: Path, config, optimizers, averages) -> int:
    """Put a checkpoint's state in place and return its step.

    Raises `UserError` for a damaged file, or one written under other settings.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"the checkpoint {path} cannot be read ({error}). Delete it to go on from the one before, "
                        "or choose another `out`") from error
    was, now = json.loads(metadata["config"]), config.to_json()
    for key in sorted(set(now) - _FREE):
        if json.loads(json.dumps(now[key])) != was.get(key):
            raise UserError(f"{path} was written with {key} = {was.get(key)!r}, the config says {now[key]!r}. "
                            "Restore the setting, or choose another `out` to start anew")
    with torch.no_grad():
        for name, parameter in optimizers.named.items():
            parameter.copy_(tensors[f"weights/{name}"])
        for name, mean in averages.mean.items():
            mean.copy_(tensors[f"mean/{name}"])
    prefix = "optimizer/"
    optimizers.load({k[len(prefix):]: t for k, t in tensors.items() if k.startswith(prefix)})
    return int(metadata["step"])
