"""Bytes that tensors take at the same time, by watching a real forward: also on the meta device, without any memory.

Every storage that an operation makes is counted until nobody holds it. What a kernel takes for itself while it runs is
not seen (a convolution's workspace), nor how an allocator rounds.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """While it is entered, `now` and `peak` are bytes of what was made since, and of what `hold` was told of."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def hold(self, *modules: nn.Module) -> int:
        """Count weights too, so that one that is replaced is no longer counted. Returns their bytes."""
        before = self.now
        for module in modules:
            for tensor in (*module.parameters(), *module.buffers()):
                self._see(tensor)
        return self.now - before

    def __torch_dispatch__(self, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        made = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._see(tensor)
        return made

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if (key := id(storage)) not in self._known:
            self._known.add(key)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, key, storage.nbytes())

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class FlashAttention(TorchFunctionMode):
    """What attention takes on an accelerator: its output and, for each query, one number. The meta device has only the
    formula, with a tensor of queries x keys that no fused kernel makes."""

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function is not F.scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        named = dict(zip(("query", "key", "value"), args)) | (kwargs or {})
        query, value = named["query"], named["value"]
        *batch, heads, length, _ = query.shape
        made = query.new_empty(*batch, length, heads, value.shape[-1]).transpose(-2, -3)
        torch.empty(*batch, heads, length, dtype=torch.float32, device=query.device)
        return made
