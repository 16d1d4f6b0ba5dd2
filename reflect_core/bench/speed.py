"""How fast it is: a real `reflect run` from the outside, and a corrector step from the inside.

The run is a process of its own, timed from its start to its first and its last picture as a user sees
them; early stopping is off, so that it draws all it may. Nothing here asserts: a busy machine is slower.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..types import UserError

LIMITS = {"first": 15.0, "all": 60.0, "memory": 1536.0, "overhead": 0.05, "large": 1.05, "small": 1.15, "sana": 1.15}
"""What it should reach on two cores: seconds, seconds for 20 pictures, MiB, and ratios."""
_FIRST = re.compile(rb"candidate \d+ .*  score")


def time_run(prompt: str, pictures: int, model_arguments: Sequence[str] = (),
             on_line: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Start `reflect run` and watch it. `on_line` gets what it says. UserError if it fails."""
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "reflect_core", "run", prompt, *model_arguments, "--pictures", str(pictures),
                   "--set", "early_stop=false", "--json", "--out", str(Path(scratch) / "run")]
        begun = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
        output: list[bytes] = []
        # Read beside, or a full pipe would stop it.
        reader = threading.Thread(target=lambda: output.append(process.stdout.read()))
        reader.start()
        first, last, said = None, None, b""
        try:
            for line in process.stderr:
                said = line
                if _FIRST.search(line):
                    last = time.perf_counter() - begun
                    first = first or last
                if on_line is not None:
                    on_line(line.decode(errors="replace").rstrip())
            code, memory = _wait(process)
        except BaseException:
            process.kill()
            # Its folder can only be removed when it has gone.
            process.wait()
            raise
        finally:
            reader.join()
        if code not in (0, 3) or first is None:
            raise UserError(f"the run ended with exit code {code}: {said.decode(errors='replace').strip()}")
        document = json.loads(output[0])
        return {"first_seconds": first, "last_seconds": last, "whole_seconds": time.perf_counter() - begun,
                "peak_mib": memory, "pictures": document["pictures"], "search_seconds": document["seconds"],
                "seconds_by_actor": document["seconds_by_actor"], "overhead_seconds": document["overhead_seconds"],
                "overhead_share": document["overhead_share"]}


def _wait(process: subprocess.Popen) -> tuple[int, float | None]:
    """Exit code and peak memory in MiB; None where the system does not tell it.

    Linux counts what the parent held when it started the child, so this must come before torch is imported here.
    """
    if not hasattr(os, "wait4"):
        return process.wait(), None
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss / (1024 if sys.platform != "darwin" else 1024 * 1024)


def time_steps(repeats: int) -> dict[str, Any]:
    """A FLUX corrector's step beside a plain one over as many tokens, at 1,408 and at 144 tokens; a Reflect-DiT step
    beside a plain SANA step, at 1,024 and at 64 latent tokens."""
    from ..generators.flux_corrector.timing import LARGE, SMALL, step_ratio
    from ..generators.reflect_dit import timing as sana

    return {"large": step_ratio(LARGE, repeats=repeats), "small": step_ratio(SMALL, repeats=4 * repeats),
            "sana": sana.step_ratio(32, repeats=min(repeats, 5)), "small_sana": sana.step_ratio(8, repeats=repeats)}


def machine() -> dict[str, Any]:
    """What it was measured on, as far as it matters."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cores": cores, "threads": torch.get_num_threads(), "torch": torch.__version__,
            "machine": platform.machine(), "system": platform.system()}


def report(run: dict[str, Any], steps: dict[str, Any], where: dict[str, Any]) -> str:
    """What was measured, what it should be, and whether it is."""
    actors = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in run["seconds_by_actor"].items() if seconds)
    rows = [
        ("first picture", run["first_seconds"], "s", LIMITS["first"]),
        (f"{run['pictures']} pictures", run["last_seconds"], "s", LIMITS["all"] if run["pictures"] == 20 else None),
        ("peak memory", run["peak_mib"], "MiB", LIMITS["memory"]),
        ("search outside models and judges", 100 * run["overhead_share"], "%", 100 * LIMITS["overhead"]),
        ("corrector step / plain, 1,408 tokens", steps["large"]["ratio"], "x", LIMITS["large"]),
        ("corrector step / plain, 144 tokens", steps["small"]["ratio"], "x", LIMITS["small"]),
        ("Reflect-DiT step / SANA, 1,024 tokens", steps["sana"]["ratio"], "x", LIMITS["sana"]),
        ("Reflect-DiT step / SANA, 64 tokens", steps["small_sana"]["ratio"], "x", None),
    ]
    lines = [_line(*row) for row in rows]
    whole = "; ".join(f"{steps[size]['ratio_without_pruning']:.2f} at {steps[size]['total_tokens']:,}"
                      for size in ("large", "small"))
    lines.append("steps are timed on the CPU; with the last block computed whole, as in a deep model it all but is, "
                 f"the ratios are {whole} tokens")
    lines.append(f"the search's {run['search_seconds']:.2f} s: {actors}, itself {run['overhead_seconds']:.2f} s")
    rest = run["whole_seconds"] - run["search_seconds"]
    lines.append(f"the whole command's {run['whole_seconds']:.2f} s: the search and {rest:.2f} s for starting, loading "
                 "and the report")
    lines.append("goals are for two cores of a CPU; a busy machine misses them")
    lines.append(f"on {where['cores']} cores ({where['machine']}, {where['system']}), torch {where['torch']} with "
                 f"{where['threads']} threads")
    return "\n".join(lines)


def _line(name: str, value: float | None, unit: str, limit: float | None) -> str:
    if value is None:
        return f"{name:38} unknown on this system"
    goal = "" if limit is None else f"   goal {limit:g}: {'reached' if value <= limit else 'MISSED'}"
    return f"{name:38} {value:8.2f} {unit:4}{goal}"
