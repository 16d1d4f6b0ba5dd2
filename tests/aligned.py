"""Weights laid where torch's own allocator puts tensors.

safetensors maps a file, in which a tensor may begin anywhere; the CPU's kernels then take other paths, and the last bit
of a sum may differ, of the same weights in the same model. What is compared to the bit is laid alike first.
"""

from __future__ import annotations

from typing import TypeVar

M = TypeVar("M")


def aligned(model: M) -> M:
    """A generator or judge with every weight of its parts and of what goes with them in memory of its own; in place."""
    beside = getattr(model, "companions", {})
    held = [*model.parts.values(), *(module for modules in beside.values() for module in modules)]
    for module in held:
        for tensor in (*module.parameters(), *module.buffers()):
            if type(tensor.data).__module__ == "torch":  # packed ones are laid anew when they are made
                tensor.data = tensor.data.clone()
    return model
