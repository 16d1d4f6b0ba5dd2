"""The command on the bundled model, killed with SIGKILL wherever it is, and resumed: the same record in the end."""

import json
import random
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from command import ENVIRONMENT, ROOT, contents, inside, reflect

from reflect_core.search import load

PROMPT = "three red circles left of a blue star and two yellow squares"
ARGUMENTS = ["--pictures", 6, "--chunk", 2, "--steps", 4, "--seed", 5, "--set", "pool=2", "--set", "branches=2",
             "--set", "rounds=2", "--set", "early_stop=false"]
KILLS = 3


def command(*arguments):
    return [sys.executable, "-m", "reflect_core", *map(str, arguments)]


def state(folder):
    """What is on the disk, as far as it changes while a run goes on."""
    lines, pictures = folder / "run.jsonl", folder / "pictures"
    return (lines.stat().st_size if lines.exists() else 0,
            sorted(p.name for p in pictures.iterdir()) if pictures.exists() else [])


def kill_after(changes, seconds, folder, *arguments):
    """Start the command and kill it so long after so many changes on the disk; its exit code."""
    process = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               env=ENVIRONMENT, cwd=ROOT)
    last = state(folder)
    until = time.monotonic() + 120
    try:
        while changes and process.poll() is None:
            assert time.monotonic() < until, "nothing came to the disk"
            time.sleep(0.001)
            if (now := state(folder)) != last:
                last, changes = now, changes - 1
        time.sleep(seconds)
    finally:
        process.kill()
    return process.wait()


def essence(folder):
    """All of a record but the clock, and the cache of texts, which every sitting fills anew."""
    header, run = load(folder)
    candidates = [replace(c, cost=replace(c.cost, seconds=0.0, text_encoder_calls=0)) for c in run.candidates]
    spent = {name: replace(cost, seconds=0.0, text_encoder_calls=0) for name, cost in run.ledger.by_actor.items()}
    words = {c.id: (run.verdicts(c.id), run.reflection(c.id)) for c in run.candidates}
    # Resumed with the same versions and settings, it says nothing of having been.
    kinds = [json.loads(line)["line"] for line in (folder / "run.jsonl").read_bytes().splitlines()]
    return replace(header, created=""), candidates, words, spent, run.stopped.kind, run.stopped.reason, kinds


@pytest.mark.slow
def test_killed_at_random_points_and_resumed_the_record_is_the_same(capsys, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    done = reflect("run", PROMPT, *ARGUMENTS, "--out", whole)
    assert done.code in (0, 3), done.err
    dice, killed = random.Random(20260101), 0
    arguments = ["run", PROMPT, *ARGUMENTS, "--out", cut]
    for _ in range(KILLS):
        # A chunk is two pictures, each written aside and renamed, and two lines.
        code = kill_after(dice.randint(1, 6), dice.uniform(0, 0.03), cut, *arguments)
        assert code in (-9, 0, 3)
        killed += code == -9 and load(cut)[1].stopped is None
        arguments = ["resume", cut] if (cut / "run.jsonl").exists() else arguments
    assert killed >= 2, "the kills came too late to mean anything"
    resumed = reflect(*arguments)
    assert resumed.code == done.code and "Traceback" not in resumed.err, resumed.err
    assert essence(cut) == essence(whole)
    assert contents(cut / "pictures") == contents(whole / "pictures")
    assert not [name for name in contents(cut) if name.endswith(".tmp")]
    assert inside(capsys, "replay", cut).code == 0
