"""Checkpoints: weights, averages and optimiser state as one safetensors file, written atomically."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from reflect_core.types import UserError

from .config import TrainConfig, same_settings
from .folder import checkpoints

FREE = {"name", "out", "steps", "save_every", "sample_every", "log_every", "keep", "compile", "device",
        "model.checkpointing", "model.sample_steps", "model.sample_guidance",
        "data.sample_prompts", "data.grid", "data.eval",
        "model.base", "model.vae", "model.vision", "data.sources.*.path"}
"""Settings that may change between an interruption and the resumption: those that change no step of the training.
What lies behind the paths of the last line must be the same, and what the others keep back from training too: that is
seen by the checksums of `data`."""
AFRESH = "delete it to go on from the one before, or choose another `out` to start anew"


@dataclass(frozen=True)
class Origin:
    """Where the state of a run comes from, beside its config."""

    step: int
    commits: tuple[str, ...]
    """Of the code that trained it, oldest first; more than one if a run was resumed with another."""


def save_checkpoint(out: Path, origin: Origin, config: TrainConfig, data: Any, optimizers, averages) -> None:
    """Write `step-N.safetensors`; a crash on the way leaves the older ones as they were.

    `data` is JSON that tells what is trained on.
    """
    tensors = {f"weights/{n}": p.detach() for n, p in optimizers.named.items()}
    tensors |= {f"mean/{n}": t for n, t in averages.mean.items()}
    tensors |= {f"optimizer/{n}": t for n, t in optimizers.state().items()}
    tensors = {k: t.cpu().contiguous() for k, t in tensors.items()}
    final = out / f"step-{origin.step}.safetensors"
    partial = final.with_suffix(".partial")
    metadata = {"step": str(origin.step), "config": json.dumps(config.to_json(), sort_keys=True),
                "commits": json.dumps(origin.commits), "data": json.dumps(data), "crc32": _crc32(tensors)}
    try:
        save_file(tensors, partial, metadata)
        with open(partial, "r+b") as handle:
            os.fsync(handle.fileno())
        os.replace(partial, final)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write the checkpoint {final}: {error}. Make room, then the same command goes on "
                        "from the one before") from error
    for old in checkpoints(out)[: -config.keep]:
        old.unlink()


def load_checkpoint(path: Path, config: TrainConfig, data: Any, optimizers, averages) -> Origin:
    """Put a checkpoint's state in place.

    Raises `UserError` for a damaged file, or one written under other settings or from other data.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"the checkpoint {path} is damaged ({error}); {AFRESH}") from error
    if not {"step", "config"} <= set(metadata):
        raise UserError(f"{path} is not a checkpoint of this trainer; {AFRESH}")
    if metadata.get("crc32", crc := _crc32(tensors)) != crc:
        raise UserError(f"the checkpoint {path} is damaged (its checksum is wrong); {AFRESH}")
    same_settings(json.loads(metadata["config"]), json.loads(json.dumps(config.to_json())), FREE, str(path))
    if "data" in metadata and json.loads(metadata["data"]) != json.loads(json.dumps(data)):
        raise UserError(f"{path} was trained on other data ({metadata['data']}; now {json.dumps(data)}). Restore "
                        "the data or the model that it came from, or choose another `out` to start anew")
    step = int(metadata["step"])
    if step > config.steps:
        raise UserError(f"{path} is at step {step}, the config says steps = {config.steps}; expected at least as "
                        "many. Raise `steps`, or choose another `out` to start anew")
    _place(tensors, path, optimizers, averages)
    return Origin(step, tuple(json.loads(metadata.get("commits", '["unrecorded"]'))))


@torch.no_grad()
def _place(tensors: dict[str, Tensor], path: Path, optimizers, averages) -> None:
    wanted = {f"weights/{n}": p for n, p in optimizers.named.items()}
    wanted |= {f"mean/{n}": t for n, t in averages.mean.items()}
    for key, target in wanted.items():
        if key not in tensors or tensors[key].shape != target.shape:
            found = f"has shape {tuple(tensors[key].shape)}" if key in tensors else "is missing"
            raise UserError(f"{path}: {key} {found}; expected {tuple(target.shape)}. The model is another one than "
                            "when it was written; choose another `out` to start anew")
        target.copy_(tensors[key])
    prefix = "optimizer/"
    optimizers.load({k[len(prefix):]: t for k, t in tensors.items() if k.startswith(prefix)})


def _crc32(tensors: Mapping[str, Tensor]) -> str:
    """A checksum of all tensors (on the CPU, contiguous), in order of their names."""
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(tensors[name].flatten().view(torch.uint8).numpy(), value)
    return f"{value:08x}"
