"""The shipped workflows on a real page of ComfyUI, in Chromium: loaded, compared with their API form, run, looked at.

Needs Node.js, Chromium and playwright-core: in PLAYWRIGHT_CORE (a folder with node_modules), or beside ComfyUI. A newer
frontend is looked for in COMFYUI_FRONTEND, or in `frontend/static` beside ComfyUI.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from fake_server import FakeServer

from reflect_core.bench.engine import ROOT, SKIP, Engine, find_comfyui

NAMES = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
COMFYUI = find_comfyui()
BESIDE = COMFYUI.parent if COMFYUI else Path("/nonexistent")
PLAYWRIGHT = Path(os.environ.get("PLAYWRIGHT_CORE", BESIDE))
PLAYWRIGHT_CORE = PLAYWRIGHT / "node_modules" / "playwright-core"
FRONTEND = Path(os.environ.get("COMFYUI_FRONTEND", BESIDE / "frontend" / "static"))
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(COMFYUI is None, reason=SKIP),
    pytest.mark.skipif(not (CHROMIUM and shutil.which("node") and PLAYWRIGHT_CORE.exists()), reason=(
        "no browser here: set CHROMIUM, and PLAYWRIGHT_CORE to a folder with playwright-core in its node_modules"))]


@pytest.mark.parametrize("frontend, renderer", [("pinned", "classic"), ("newest", "classic"), ("newest", "vue")])
def test_every_workflow_loads_and_runs_on_a_page(frontend, renderer, tmp_path):
    if frontend == "newest" and not (FRONTEND / "index.html").exists():
        pytest.skip("no newer frontend here: set COMFYUI_FRONTEND to its folder 'static'")
    arguments = [] if frontend == "pinned" else ["--front-end-root", str(FRONTEND)]
    shots = Path(os.environ.get("REFLECT_SHOTS", tmp_path / "shots")) / frontend
    environment = {**os.environ, "PLAYWRIGHT_CORE": str(PLAYWRIGHT), "CHROMIUM": CHROMIUM}
    # Never content in the first round: what a server says of a picture is then told to the model.
    words = {"words": lambda document, red: "- Add a red circle." if "Add, Remove" in str(document) else None}
    with Engine(COMFYUI, tmp_path / "base", *arguments) as engine, FakeServer(**words).running() as judge:
        environment["JUDGE"] = judge.url
        command = ["node", str(ROOT / "tests/browser/check.mjs"), engine.url, str(ROOT / "workflows"), str(shots),
                   renderer]
        done = subprocess.run([*command, *NAMES], capture_output=True, text=True, env=environment, timeout=1500)
    assert done.returncode == 0, done.stderr[-2000:]
    found = {one["name"]: one for one in map(json.loads, done.stdout.splitlines())}
    assert sorted(found) == NAMES
    for one in found.values():
        assert one["failed"] is None and not one["bad"] and not one["errors"] and one["same"], one
        assert (shots / f"{one['name']}-{renderer}.png").stat().st_size > 10_000
