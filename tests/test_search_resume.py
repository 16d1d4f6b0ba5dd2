"""A run is never lost: cut or killed anywhere, it resumes and ends as it would have ended.

The fake generator's pictures depend on who shares their batch, so an end that is the same also
shows that a resumed run splits what is left into the same batches.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from fakes import SIZE, FakeGenerator, FakeRefiner, FakeReflector, FakeVerifier
from hypothesis import given, settings
from hypothesis import strategies as st

from reflect_core.search import (
    BestOfN,
    Budget,
    Draw,
    NoisePromptScaling,
    Policy,
    Reflect,
    ReflectionFlow,
    Stop,
    derive_seed,
    load,
    replay,
    resume,
    start,
)
from reflect_core.search.entries import Planned
from reflect_core.types import Pair, Request, UserError

HERE = Path(__file__).parent
REQUEST = Request("two red circles", seed=3, width=SIZE, height=SIZE, steps=4)
POLICIES = {
    "best of n": BestOfN(9, early_stop=False),
    "early stop": BestOfN(40),
    "two at once": ReflectionFlow(5, 4, 3),
    "prompts": NoisePromptScaling(2, 4),
    "flow": ReflectionFlow(5, 2, 3, refine=True, early_stop=False),
    "patient": ReflectionFlow(4, 3, 3, patience=1, reflect_again=False),
    "official": ReflectionFlow(5, 2, 3, refine=True, parents="last", early_stop=False, pool_in_choice=False,
                               judge_again=True, silent="correct", pool_steps=5, corrector_steps=3),
}
THRESHOLDS = {"early stop": 0.6, "two at once": 0.55}
"""From where on the judge accepts; 0.75 for the others. See `test_the_early_stops_leave_something_undrawn`."""
BUDGET = Budget(pictures=12, denoiser_evaluations=110)


def actors(name="", **generator):
    return (FakeGenerator(batch_matters=True, **generator), FakeVerifier(THRESHOLDS.get(name, 0.75)), FakeReflector(),
            FakeRefiner())


def story(folder):
    """Everything on record but the clock's words."""
    def timeless(value):
        if isinstance(value, dict):
            return {k: timeless(v) for k, v in value.items() if k not in ("overhead", "seconds", "created")}
        return [timeless(v) for v in value] if isinstance(value, list) else value
    lines = [timeless(json.loads(line)) for line in (folder / "run.jsonl").read_bytes().splitlines()]
    return lines, {p.name: p.read_bytes() for p in (folder / "pictures").iterdir()}


@pytest.fixture(scope="module", autouse=True)
def no_waiting_for_the_disk():
    """A kill takes no page cache away: what fsync is for, a power cut, cannot be tested here anyway."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One uninterrupted record for each policy."""
    folders = {}
    for name, policy in POLICIES.items():
        folders[name] = tmp_path_factory.mktemp("whole") / "run"
        with start(REQUEST, policy, *actors(name), chunk=3, budget=BUDGET, folder=folders[name]) as stepper:
            stepper.run()
    return folders


@pytest.mark.parametrize("name, accepted", [("early stop", 1), ("two at once", 3)])
def test_the_early_stops_leave_something_undrawn(whole, name, accepted):
    """Or nothing here would show that a resumed run stops where the uninterrupted one did."""
    run = load(whole[name])[1]
    assert run.stopped.kind == "accepted"
    assert len(run.plan.planned) > len(run.in_round(run.plan.round)) >= len(run.chunks[-1])
    assert sum(run.candidate(c.id).accepted for c in run.chunks[-1]) == accepted


def check_resumed(folder, whole, name):
    """Resume, and compare the end with the uninterrupted run's."""
    on_record = len(load(folder)[1].candidates)
    generator, *rest = actors(name)
    with resume(folder, generator, *rest) as stepper:
        run = stepper.run()
    assert story(folder) == story(whole[name])
    # Nothing that was on record was drawn again.
    assert [r.seed for r in generator.drawn] == [c.request.seed for c in run.candidates[on_record:]]


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(POLICIES)), where=st.floats(0, 1))
def test_resumed_at_any_cut_it_ends_the_same(whole, name, where):
    content = (whole[name] / "run.jsonl").read_bytes()
    header = content.index(b"\n") + 1
    cut = header + round(where * (len(content) - header))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        shutil.copytree(whole[name], folder)
        (folder / "run.jsonl").write_bytes(content[:cut])
        check_resumed(folder, whole, name)


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_resumed_after_any_line_it_ends_the_same(whole, name, tmp_path):
    lines = (whole[name] / "run.jsonl").read_bytes().splitlines(keepends=True)
    for count in range(1, len(lines) + 1):
        folder = tmp_path / str(count)
        (folder / "pictures").mkdir(parents=True)
        (folder / "run.jsonl").write_bytes(b"".join(lines[:count]))
        for id in range(len(load(folder)[1].candidates)):
            shutil.copy(whole[name] / "pictures" / f"{id:05d}.png", folder / "pictures")
        check_resumed(folder, whole, name)


def test_cut_in_the_header_nothing_is_there_to_resume(whole, tmp_path):
    shutil.copytree(whole["flow"], tmp_path / "run")
    (tmp_path / "run" / "run.jsonl").write_bytes(b'{"line":"header","request":')
    with pytest.raises(UserError, match="no whole line"):
        resume(tmp_path / "run", *actors())


def test_resuming_a_finished_run_draws_nothing(whole, tmp_path):
    shutil.copytree(whole["flow"], tmp_path / "run")
    check_resumed(tmp_path / "run", whole, "flow")


# A policy that is not ours, with three pairs of context: what Reflect-DiT will need of the stepper.

@dataclass(frozen=True)
class Chain(Policy):
    name = "chain of the tests"
    n: int = 7
    max_context = 3
    needs = frozenset({"reflector"})

    @property
    def most_pictures(self):
        return self.n

    def next(self, run):
        done = run.candidates
        if len(done) == self.n or run.accepted:
            return Stop("done", "enough")
        if done and run.reflection(done[-1].id) is None:
            return Reflect(len(done), (done[-1].id,))
        context = tuple(Pair(run.reflection(c.id), c.id) for c in done[-3:])
        request = replace(run.request, seed=derive_seed(run.seed, "noise", len(done)), context=context)
        return Draw(len(done), (Planned(request, 0, done[-1].id if done else None),), until_accepted=True)


def test_a_policy_from_outside_with_three_pairs(tmp_path):
    with start(REQUEST, Chain(), *actors(max_context=3), folder=tmp_path / "whole") as stepper:
        run = stepper.run()
    assert [len(c.request.context) for c in run.candidates] == [0, 1, 2, 3, 3, 3, 3]
    assert [p.candidate for p in run.candidates[6].request.context] == [3, 4, 5]
    lines = (tmp_path / "whole" / "run.jsonl").read_bytes().splitlines(keepends=True)
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    (tmp_path / "run" / "run.jsonl").write_bytes(b"".join(lines[:11]))
    with pytest.raises(UserError, match="unknown policy 'chain of the tests'"):
        resume(tmp_path / "run", *actors(max_context=3))
    with pytest.raises(UserError, match="takes 1"):
        resume(tmp_path / "run", *actors(), policy=Chain())
    with resume(tmp_path / "run", *actors(max_context=3), policy=Chain()) as stepper:
        stepper.run()
    assert story(tmp_path / "run") == story(tmp_path / "whole")
    assert replay(tmp_path / "run", FakeGenerator(max_context=3, batch_matters=True)).same


# Kills. First at every single point at which something reaches the disk ...

def killed_at(point, half, folder, name):
    """In a child: run, and die by SIGKILL at the `point`-th call that changes the disk (before it, or,
    with `half`, when it has done half of its work). True if it was killed, False if it came to an end."""
    child = os.fork()
    if child == 0:
        count = 0

        def deadly(call):
            def wrapped(*args, **kwargs):
                nonlocal count
                count += 1
                if count == point:
                    if half and call is write:
                        call(args[0], args[1][: len(args[1]) // 2])
                    elif half:
                        call(*args, **kwargs)
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **kwargs)
            return wrapped

        def write(file, data):
            return file.write(data)
        try:
            os.fsync, os.replace = deadly(os.fsync), deadly(os.replace)
            stepper = start(REQUEST, POLICIES[name], *actors(name), chunk=3, budget=BUDGET, folder=folder)
            stepper.record._file = Written(stepper.record._file, deadly(write))
            stepper.run()
            os._exit(0)
        except BaseException:
            os._exit(3)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WIFSIGNALED(status)


class Written:
    def __init__(self, file, write):
        self.file = file
        self.write = lambda data: write(file, data)

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name, points", [("flow", 60), ("two at once", 40)])
def test_killed_at_any_point_it_resumes_and_ends_the_same(whole, tmp_path, name, points, half):
    point = 0
    while True:
        point += 1
        folder = tmp_path / f"run{point}"
        if not killed_at(point, half, folder, name):
            break
        if not (folder / "run.jsonl").exists():
            # Killed before the header was whole: nothing was drawn, and the folder can be used.
            with start(REQUEST, POLICIES[name], *actors(name), chunk=3, budget=BUDGET, folder=folder) as stepper:
                stepper.run()
            assert story(folder) == story(whole[name])
            continue
        check_resumed(folder, whole, name)
    assert point > points


# ... then at random moments, in processes of their own.

SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = [{root!r}, {here!r}]
from fakes import SIZE, FakeGenerator, FakeReflector, FakeVerifier
from reflect_core.search import ReflectionFlow, resume, start
from reflect_core.types import Request
folder = Path({folder!r})
actors = FakeGenerator(batch_matters=True, seconds=0.006, log={log!r}), FakeVerifier(2), FakeReflector()
if (folder / "run.jsonl").exists():
    stepper = resume(folder, *actors)
else:
    request = Request("two red circles", seed=3, width=SIZE, height=SIZE, steps=4)
    stepper = start(request, ReflectionFlow(12, 4, 15), *actors, chunk=3, folder=folder)
print("ready", flush=True)
stepper.run()
"""


def test_killed_at_random_moments(tmp_path):
    rng = random.Random(4)
    log, folder = tmp_path / "drawn.log", tmp_path / "run"
    script = SCRIPT.format(root=str(HERE.parent), here=str(HERE), folder=str(folder), log=str(log))
    kills, again, recorded = 0, 0, 0
    while True:
        log.write_text("")
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True)
        first = process.stdout.readline()
        assert first == "ready\n", process.stderr.read()
        before, recorded = recorded, None
        if kills < 14:
            time.sleep(rng.uniform(0, 0.05))
            process.kill()
        process.communicate()
        assert process.returncode in (0, -signal.SIGKILL)
        run = load(folder)[1]
        recorded = len(run.candidates)
        drawn = [int(line.split()[0]) for line in log.read_text().splitlines() if line.endswith(("0", "1"))]
        # This sitting drew what came onto the record, in order, and at most one chunk more.
        assert drawn[: recorded - before] == [c.request.seed for c in run.candidates[before:]]
        again += len(drawn) - (recorded - before)
        assert len(drawn) - (recorded - before) <= 3
        if process.returncode == 0:
            break
        kills += 1
    assert kills >= 10, "the machine was too fast for this test: make the run longer"
    assert again <= 3 * kills
    run = load(folder)[1]
    with start(REQUEST, ReflectionFlow(12, 4, 15), FakeGenerator(batch_matters=True),
               FakeVerifier(2), FakeReflector(), chunk=3, folder=tmp_path / "whole") as stepper:
        stepper.run()
    assert story(folder) == story(tmp_path / "whole")
    assert len(run.candidates) == 72
    assert replay(folder, FakeGenerator(batch_matters=True)).same
