"""The same stages on a real GPU, with models of the true size whose weights are all zero: what torch's allocator says.

It takes as much main memory as the model's weights, and for offload 'none' as much on the GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ..generators.memory import enough_memory
from ..generators.offload import HOME, OFFLOADS, Offload
from ..types import UserError
from .memory import FAMILIES, compute, stages
from .true_size import true_size

Meter = Callable[[Callable[[], object]], int]
"""Does some work, and returns the bytes that were on the device at most."""


def measure(family: str, device: torch.device | str, size: int = 1024, batch: int = 1, meter: Meter | None = None
            ) -> dict[str, dict[str, int]]:
    """Bytes on the device at most, of every stage by offload, with weights in bf16. UserError where they do not fit."""
    found = {}
    for offload in OFFLOADS:
        parts, beside = true_size(family)
        home = torch.device(device) if offload == "none" else HOME
        with enough_memory():
            for module in (*parts.values(), beside):
                _zeros(module, home)
            held = {name: [part, beside] if name == "transformer" else [part] for name, part in parts.items()}
            manager = None if offload == "none" else Offload(held, device, offload)
            found[offload] = {}
            for name, stage in stages(family, parts, beside, size, batch, torch.device(device)).items():
                def work(stage=stage, manager=manager) -> None:
                    if manager is not None:
                        manager(stage.part)
                    stage.work()
                with torch.no_grad():
                    found[offload][name] = (meter or _allocated(device))(work)
            if manager is not None:
                manager.release()
        del parts, beside, held, manager
    return found


def _zeros(module: nn.Module, device: torch.device) -> None:
    module.to_empty(device=device)
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.zero_()


def _allocated(device: torch.device | str) -> Meter:
    if torch.device(device).type != "cuda" or not torch.cuda.is_available():
        raise UserError(f"the device {device!r} cannot be measured on; expected a CUDA device, e.g. cuda; try to leave "
                        "--device out: the table is computed without one")

    def meter(work: Callable[[], object]) -> int:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    return meter


def compute_all(families: Sequence[str], ways: Sequence[str], size: int, batch: int, device: str | None = None,
                tell: Callable[[str], None] = lambda text: None) -> list[dict[str, Any]]:
    """`compute` of each; with a device what is in bf16 is `measured` there too."""
    found = []
    for family in families:
        for way in ways:
            tell(f"{FAMILIES[family]}, weights in {way}")
            found.append(compute(family, way, size, batch))
            if device is not None and way == "bfloat16":
                tell(f"{FAMILIES[family]}, measured on {device}")
                found[-1]["measured"] = measure(family, device, size, batch)
    return found
