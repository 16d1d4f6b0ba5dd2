"""What a machine does to a run (no memory, no room on the disk, no permission), as a line that says what to try."""

from __future__ import annotations

from reflect_core.types import UserError

GOES_ON = "then the same command goes on from the last checkpoint"
MEMORY = ("try a smaller `batch` with a larger `accumulate`, and for a corrector a smaller model.size or "
          "model.weights: bf16 (these need another `out`, or none of its checkpoints), or model.checkpointing: true, "
          "with which a run may go on")


def explained(error: BaseException) -> str | None:
    """The one line for an error of the user's or the machine's; None for a fault of the code, whose traceback counts.

    The library names its own switches when memory ends; the trainer's are others, so the cause is looked at first.
    """
    cause: BaseException | None = error
    while cause is not None:
        if _is_out_of_memory(cause):
            return f"not enough memory ({_first_line(cause)}); expected room for the model and a batch; {MEMORY}"
        cause = cause.__cause__
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":  # it does not say of what kind
        where = f"{error.filename}: " if getattr(error, "filename", None) else ""
        said = getattr(error, "strerror", None) or _first_line(error)
        return (f"{where}{said}; expected a disk with room and files that can be read and written. Try `df` and the "
                f"permissions of the folders in the config; {GOES_ON}")
    return None


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    # torch names an exhausted CPU or MPS in words only.
    words = ("DefaultCPUAllocator", "out of memory", "CUDA_ERROR_OUT_OF_MEMORY")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200] or type(error).__name__
