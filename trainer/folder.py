"""A run's folder: which files in it are the trainer's own, so that it never touches anybody else's.

A file `trainer.json` says that a run made the folder. Without it nothing is written over or deleted: a folder that
holds something under a name which the run would take is refused.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reflect_core.search.lock import RecordLock
from reflect_core.types import UserError

MARKER = "trainer.json"
_CHECKPOINT = re.compile(r"step-(\d+)\.safetensors")
_SHEET = re.compile(r"[0-9]{7,}\.png")
_TRAINING = ("log.jsonl", "samples", "result", "result.partial")
OWN = {"vae": _TRAINING, "text": (*_TRAINING, "tokenizer", "tokenizer_2"), "base": _TRAINING,
       "corrector": (*_TRAINING, "fresh_rate.json"),
       "sana_vae": _TRAINING, "sana_text": (*_TRAINING, "tokenizer"), "sana_vision": _TRAINING,
       "sana_base": _TRAINING, "reflect": _TRAINING, "reflect_context": _TRAINING,
       "harvest": ("triplets.jsonl", "progress.jsonl", "settings.json", "provenance.json")}
"""What a task writes in its folder, beside files whose names no one else would choose."""
_LEFTOVERS = ("step-*.partial", "bank-*.partial", "log.partial", "trainer.partial", "result.partial")


def check_writable(out: Path) -> None:
    """Make a folder if need be. Raises `UserError` if nothing can be written in it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write to {out} ({error.strerror}); expected a folder that can be made or written. "
                        "Choose another `out`") from error


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """A run's folder, kept from other processes. Raises `UserError` if another one has it."""
    try:
        lock = RecordLock(out)
    except UserError as error:
        raise UserError(f"another process trains in {out}; wait for it, end it, or choose another `out`") from error
    try:
        yield
    finally:
        lock.release()


def claim(out: Path, task: str) -> None:
    """Mark a folder as this task's. Raises `UserError` if it is another task's, or holds what no run made."""
    marker = out / MARKER
    if marker.exists():
        was = _task_of(marker)
        if was != task:
            raise UserError(f"{marker} says that the task {was} runs in {out}; expected {task}. Choose another `out`, "
                            "one for each task")
        return
    if not _made_by_an_older_trainer(out, task):
        found = [name for name in OWN[task] if (out / name).exists()]
        if found:
            raise UserError(f"{out} holds {', '.join(found)}, which no run of this trainer made, and would be written "
                            "over; expected a new or empty folder, or one of a run. Choose another `out`")
    write_whole(marker, json.dumps({"task": task}) + "\n")


def checkpoints(out: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first, by number (not by the name's spelling)."""
    found = [(int(m[1]), p) for p in out.glob("step-*.safetensors") if (m := _CHECKPOINT.fullmatch(p.name))]
    return [path for _, path in sorted(found)]


def tidy(out: Path, step: int) -> None:
    """Take away what a killed process left half written, and what was logged and drawn behind the checkpoint of
    `step` (-1: there is none), for those steps are done again."""
    for pattern in _LEFTOVERS:
        for left in out.glob(pattern):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    drawn = {int(p.stem): p for p in (out / "samples").glob("*.png") if _SHEET.fullmatch(p.name)}
    for at, sheet in drawn.items():
        if at > step:
            sheet.unlink()
    (out / "samples" / "next.png").unlink(missing_ok=True)
    file = out / "log.jsonl"
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []
    write_whole(file, "".join(line + "\n" for line in lines if _holds(line, step, drawn)))


def write_whole(file: Path, text: str) -> None:
    """Write a file so that it is never seen half written."""
    partial = file.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, file)


def _holds(line: str, step: int, drawn: dict[int, Path]) -> bool:
    """Whether a line of the log counts: it is whole, not behind the checkpoint, and not the checkpoint's own figures
    without their sheet. Between those two a kill may have come; both are then made again."""
    try:
        entry = json.loads(line)
        at = entry["step"]
        return at < step or at == step and ("loss" in entry or at in drawn)
    except (ValueError, KeyError, TypeError):
        return False  # torn


def _task_of(marker: Path) -> str:
    try:
        return str(json.loads(marker.read_text(encoding="utf-8"))["task"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{marker} is not what this trainer writes ({error}); expected a folder of a run, or a new "
                        "one. Choose another `out`") from error


def _made_by_an_older_trainer(out: Path, task: str) -> bool:
    """Whether a folder without marker holds a run, as they were before there was a marker."""
    if task == "harvest":
        return {"config", "base"} <= set(_keys(out / "settings.json"))
    return any({"step", "config"} <= set(_metadata(file)) for file in checkpoints(out))


def _keys(file: Path) -> list[str]:
    try:
        return list(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return []


def _metadata(file: Path) -> dict[str, str]:
    """Of a safetensors file, without torch."""
    try:
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            return json.loads(handle.read(min(length, 1 << 26))).get("__metadata__", {})
    except (OSError, ValueError, AttributeError):
        return {}
