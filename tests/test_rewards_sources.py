"""Rewards by name, and the table of where they come from."""

import subprocess
import sys

import pytest
from tiny_rewards import picture, write_head, write_tiny_clip

from reflect_core.types import UserError
from reflect_core.verifiers.rewards import REWARDS, SOURCES, load_reward


def test_every_reward_has_its_sources():
    assert set(SOURCES) == set(REWARDS)
    for name, sets in SOURCES.items():
        for sources in sets:
            assert [s.option for s in sources] == ["folder", *{"aesthetic": ["head"], "image-verifier": ["base"]}.get(
                name, [])]
            assert all(s.repository and s.size and s.licence and s.files for s in sources)


def test_a_reward_by_its_name(tmp_path):
    folder, head = write_tiny_clip(tmp_path / "clip"), write_head(tmp_path / "head.safetensors", 16)
    shared = {}
    names = {"clip-score": {}, "pick-score": {"reference": 20.0}, "aesthetic": {"head": head}}
    for name, options in names.items():
        reward = load_reward(name, folder, shared=shared, threshold=0.5, **options)
        assert 0 <= reward.judge("a red circle", [picture(1)])[0].score <= 1 and reward.threshold == 0.5
    assert len(shared) == 1


@pytest.mark.parametrize("name, options, said", [
    ("clip", {}, "there is no reward 'clip'; expected one of clip-score"),
    ("clip-score", {"base": "x"}, "has no option 'base'; expected some of dtype, device, threshold, prefix"),
    ("aesthetic", {}, "needs the option 'head'"), ("image-verifier", {"head": "x"}, "has no option 'head'")])
def test_a_wrong_name_or_option(tmp_path, name, options, said):
    with pytest.raises(UserError, match=said):
        load_reward(name, tmp_path, **options)


def test_nothing_heavy_is_imported_for_the_table():
    command = ("import sys, reflect_core.verifiers.rewards, reflect_core.report; "
               "sys.exit(' '.join(m for m in ('torch', 'transformers', 'diffusers') if m in sys.modules) or 0)")
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
