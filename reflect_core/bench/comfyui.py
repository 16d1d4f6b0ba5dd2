"""What the ComfyUI face costs: a loop of 16 rounds beside the same search by the library, and the pack's import.

Both draw the same pictures, which is checked. ComfyUI is the one that `engine.find_comfyui` finds.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .. import search
from ..judges import find_judge
from ..presets.choice import ModelChoice
from ..reflectors import SpokenReflector
from ..search import ReflectionFlow
from ..types import Request, UserError
from .engine import SKIP, Engine, find_comfyui
from .graphs import loop, numbered, ran

PROMPT, WORDS = "two red circles left of a blue star", "add a green square"
"""The judge is nobody, so that no round is accepted; the words are what every round is told."""
ROUNDS, STEPS = 16, 16
LIMITS = {"extra": 1.5, "megabytes": 2.0, "import": 0.3}
"""What it should reach: seconds more than the library, MB of websocket messages, seconds of import."""


def measure(say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Run both and compare. UserError where no ComfyUI is found, or the two do not draw the same."""
    comfyui = find_comfyui()
    if comfyui is None:
        raise UserError(SKIP)
    if find_spec("websocket") is None:
        raise UserError("websocket-client is not installed; expected it, to hear of ComfyUI's progress; try the extra "
                        "'comfyui' of this package")
    say(f"ComfyUI at {comfyui}")
    seconds, hashes = _by_library()
    with tempfile.TemporaryDirectory() as scratch, Engine(comfyui, Path(scratch) / "base") as engine:
        warm = {"prompt.value": PROMPT, "sample.candidates": 1, "sample.steps": STEPS, "controller.rounds": 1,
                "judge.kind": "none", "reflector.words": WORDS}
        engine.run(numbered(loop({**warm, "sample.seed": 1}))[0])
        say(f"{ROUNDS} rounds in ComfyUI")
        graph, ids = numbered(loop({**warm, "controller.rounds": ROUNDS}))
        done = engine.run(graph)
        if done.error is not None:
            raise UserError(f"ComfyUI failed: {done.error['exception_message']}")
        shown = [engine.picture(one).convert("RGB") for one in done.outputs[ids["all"]]["images"]]
        loading = re.findall(r"([\d.]+) seconds: .*custom_nodes.reflect", engine.log.read_text())
    drawn = [hashlib.sha256(picture.tobytes()).hexdigest() for picture in shown]
    if drawn != hashes or ran(done.executed, ids["sample"]) != ROUNDS:
        raise UserError(f"ComfyUI drew {len(drawn)} pictures, the library {len(hashes)}, or other ones; expected the "
                        "same; try the tests on the real engine")
    return {"rounds": ROUNDS, "library_seconds": seconds, "comfyui_seconds": done.seconds,
            "extra_seconds": done.seconds - seconds, "megabytes": done.bytes / 1e6,
            "import_seconds": float(loading[0]) if loading else None}


def _by_library() -> tuple[float, list[str]]:
    """Seconds of the same search, its model loaded and warm, and its pictures' hashes."""
    choice, judge = ModelChoice("shapes-flux", device="cpu", dtype="float32"), find_judge("none").actors()
    generator = choice.load()
    size = {name: generator.defaults[name] for name in ("width", "height")}
    request = Request(PROMPT, 0, steps=STEPS, guidance=2.5, **size)
    generator.draw([Request(PROMPT, 1, steps=STEPS, guidance=2.5, **size)])
    began = time.perf_counter()
    run = search.start(request, ReflectionFlow(1, 1, ROUNDS - 1), generator, judge.verifier,
                       SpokenReflector(judge.reflector, WORDS), chunk=1).run()
    seconds = time.perf_counter() - began
    return seconds, [hashlib.sha256(run.picture(c.id).tobytes()).hexdigest() for c in run.candidates]


def report(found: dict[str, Any]) -> str:
    """The measurement in lines, each beside what it should reach."""
    loading = "not told" if found["import_seconds"] is None else f"{found['import_seconds']:.1f} s"
    return "\n".join([
        f"{found['rounds']} rounds: {found['comfyui_seconds']:.2f} s in ComfyUI, {found['library_seconds']:.2f} s by "
        f"the library: {found['extra_seconds']:.2f} s more (goal: at most {LIMITS['extra']:g})",
        f"websocket: {found['megabytes']:.2f} MB (goal: at most {LIMITS['megabytes']:g})",
        f"import of the pack: {loading} (goal: below {LIMITS['import']:g})"])
