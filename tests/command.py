"""The command line as tests call it: as a process of its own, or in this one where only the outcome counts."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tiny_flux import CONDITION_SIZE, TEXT_LENGTH, write_tiny_flux

from reflect_core.cli import main

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive"}
ENVIRONMENT.pop("PYTHONUNBUFFERED", None)  # with it argparse swallows what goes wrong with stdout


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of a refused command; fails if there is more, or a traceback."""
        assert self.code == 2, (self.code, self.out, self.err)
        assert "Traceback" not in self.err + self.out
        lines = [line for line in self.err.splitlines() if not line.startswith("loading ")]
        assert len(lines) == 1 and lines[0].startswith("error: "), self.err
        return lines[0]


def reflect(*arguments, cwd=ROOT, answers: str = "") -> Result:
    """`python -m reflect_core ...` in a process of its own; `answers` are what it reads from stdin."""
    done = subprocess.run([sys.executable, "-m", "reflect_core", *map(str, arguments)], capture_output=True, text=True,
                          env=ENVIRONMENT, cwd=cwd, timeout=120, input=answers)
    return Result(done.returncode, done.stdout, done.stderr)


def inside(capsys, *arguments) -> Result:
    """The same in this process: torch is there already."""
    capsys.readouterr()
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return Result(code, captured.out, captured.err)


def write_tiny_model(folder: Path, **changes) -> Path:
    """A tiny model that draws 64 x 64, which is what the judge reads."""
    settings = {"defaults": {"width": 64, "height": 64, "steps": 2, "guidance": 2.0},
                "options": {"condition_size": CONDITION_SIZE, "max_sequence_length": TEXT_LENGTH}}
    return write_tiny_flux(folder, settings=settings, **changes)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, to see that nothing was touched."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
