"""Running out of memory, as an error that says what to change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..types import UserError


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is the end of an accelerator's memory or of the CPU's."""
    # torch has no type of its own for the CPU; torch.cuda's name is torch.OutOfMemoryError, before 2.5 too.
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error)


CURES = ("offload=component or offload=layers, vae_tiling=true, encoder_device='cpu' for the text encoders, a smaller "
         "max_batch, or dtype=torch.bfloat16")
"""What a FLUX corrector has to try."""


@contextmanager
def enough_memory(cures: str = CURES) -> Iterator[None]:
    """Raise UserError, with what to try, where the block runs out of memory; other errors pass."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        said = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
        raise UserError(f"not enough memory ({said}); expected room for the model and what it works on; try {cures}"
                        ) from error
