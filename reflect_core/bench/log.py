"""The benchmark's finished work on disk: `units.jsonl`, the settings and then a unit a line.

Each line is on the disk before the next unit begins, and one process at a time writes: a kill costs the
unit in progress and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from ..search.header import versions_here
from ..search.lock import RecordLock
from ..types import UserError

UNITS = "units.jsonl"
LIBRARY = Path(__file__).resolve().parents[1]
_OUTPUT_ONLY = ("cli", "report", "bench/beside.py", "bench/intervals.py", "bench/plot.py", "bench/speed.py",
                "bench/statistics.py", "bench/table.py")
"""Code that changes no result, only what is said of it."""


class UnitLog:
    """`units` are the finished ones. UserError if the folder cannot be written or holds other work."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.path = folder / UNITS
        wanted = json.loads(json.dumps(settings))
        self._lock: RecordLock | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = RecordLock(folder)
            content = self.path.read_bytes() if self.path.exists() else b""
            lines = _whole_lines(self.path, content)
            self._check(lines, wanted)
            self.units = lines[1:]
            self._file = open(self.path, "ab", buffering=0)
            # What a kill left of a line is cut off.
            self._file.truncate(content.rfind(b"\n") + 1)
        except OSError as error:
            self._release()
            raise self._unwritable(error) from error
        except BaseException:
            self._release()
            raise
        if not lines:
            try:
                self.append(wanted)
            except BaseException:
                self.__exit__()
                raise

    def append(self, line: dict[str, Any]) -> None:
        """Return when the line is on the disk. UserError if it cannot be; what is left of it is cut off next time."""
        data = json.dumps(line, allow_nan=False).encode() + b"\n"
        try:
            done = 0
            while done < len(data):
                done += self._file.write(data[done:])
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._unwritable(error) from error

    def __enter__(self) -> UnitLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._release()

    def _check(self, lines: list[dict[str, Any]], wanted: dict[str, Any]) -> None:
        """UserError unless these are lines of the benchmark that has these settings."""
        for number, line in enumerate(lines, start=1):
            whole = isinstance(line, dict) and (number == 1 or {"unit", "column", "runs", "fixes"} <= line.keys())
            if not whole:
                raise UserError(f"line {number} of {self.path} is not what a benchmark writes; try another --out, or "
                                "to remove it")
        other = sorted(k for k in {**wanted, **lines[0]} if lines[0].get(k) != wanted.get(k)) if lines else []
        if other:
            raise UserError(f"{self.path} holds the work of another benchmark (other {', '.join(other)}); try "
                            "another --out, or remove it")

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(f"the folder {self.path.parent} cannot be written ({error}); what is finished is kept; try to "
                         "make room, or another --out")

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()


def code_state(root: Path = LIBRARY) -> str:
    """A hash of the code that results depend on, and of its libraries' versions: units of two states are two things."""
    digest = hashlib.sha256(json.dumps(versions_here(), sort_keys=True).encode())
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if not name.startswith(_OUTPUT_ONLY):
            digest.update(f"{name}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _whole_lines(path: Path, content: bytes) -> list[Any]:
    lines = []
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            lines.append(json.loads(line))
        except ValueError as error:
            raise UserError(f"line {number} of {path} is damaged ({error}); try to remove it and what follows it, and "
                            "start again") from error
    return lines
