"""Running out of memory, as an error that says what to change."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..types import UserError


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is the end of an accelerator's memory or of the CPU's."""
    # torch.cuda's name is torch.OutOfMemoryError, before 2.5 too.
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or bool(_SAID.search(str(error)))


# The CPU and Apple's GPU have no type of their own, nor have CUDA's libraries, and Windows has a number (1455).
_SAID = re.compile(r"DefaultCPUAllocator|CUDA error: out of memory|(CUBLAS|CUDNN)_STATUS_ALLOC_FAILED|"
                   r"MPS backend out of memory|paging file is too small|os error 1455")

CURES = ("quantise=nf4 or fp8 with offload=component, offload=layers, vae_tiling=true, encoder_device='cpu' for the "
         "text encoders, a smaller size or max_batch, or dtype=torch.bfloat16")
"""What a generator has to try."""


@contextmanager
def enough_memory(cures: str = CURES) -> Iterator[None]:
    """Raise UserError, with what to try, where the block runs out of memory; other errors pass."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        said = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
        raise UserError(f"not enough memory ({said}); expected room for the model and what it works on; try {cures}"
                        ) from error
