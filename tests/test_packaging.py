"""What pip is told: ComfyUI installs from requirements.txt, everyone else from pyproject.toml."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_both_lists_ask_for_the_same():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 cannot read TOML by itself")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    # ComfyUI brings the torch that fits the machine; another one would replace it.
    wanted = [name for name in project["dependencies"] if not name.startswith("torch")]
    assert sorted((ROOT / "requirements.txt").read_text(encoding="utf-8").split()) == sorted(wanted)
