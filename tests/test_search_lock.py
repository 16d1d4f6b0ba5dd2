"""Two processes never write one record: by the system's locks, and where there are none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import SIZE, FakeGenerator, FakeReflector, FakeVerifier

from reflect_core.search import ReflectionFlow, load, lock, resume, start
from reflect_core.types import Request, UserError

ROOT = Path(__file__).parents[1]
REQUEST = Request("two red circles", seed=3, width=SIZE, height=SIZE, steps=4)
FLOW = ReflectionFlow(4, 2, 3)


def actors():
    return FakeGenerator(batch_matters=True), FakeVerifier(2), FakeReflector()


@pytest.fixture
def folder(tmp_path):
    """A finished record."""
    with start(REQUEST, FLOW, *actors(), chunk=3, folder=tmp_path / "run", model="fake",
               fingerprint="abc") as stepper:
        stepper.run()
    return tmp_path / "run"


OTHER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from reflect_core.search import lock
if sys.argv[3] == "by creating":
    def none(handle): raise OSError("no locks here")
    lock._system_lock = none
held = lock.RecordLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def other_process(folder, how):
    process = subprocess.Popen([sys.executable, "-c", OTHER, str(folder), str(ROOT), how],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("how", ["system", "by creating"])
def test_two_processes_do_not_write_one_record(folder, how, monkeypatch):
    if how == "by creating":
        monkeypatch.setattr(lock, "_system_lock", lambda handle: (_ for _ in ()).throw(OSError))
    process = other_process(folder, how)
    try:
        with pytest.raises(UserError, match="another process"):
            resume(folder, *actors())
        load(folder)
    finally:
        # Killed, so that it cannot tidy up: a stale lock is taken over.
        process.kill()
        process.communicate()
    resume(folder, *actors()).close()
    resume(folder, *actors()).close()


@pytest.mark.parametrize("how", ["system", "by creating"])
def test_the_same_process_cannot_open_a_record_twice(folder, how, monkeypatch):
    if how == "by creating":
        monkeypatch.setattr(lock, "_system_lock", lambda handle: (_ for _ in ()).throw(OSError))
    with resume(folder, *actors()):
        with pytest.raises(UserError, match=f"process {os.getpid()} on "):
            resume(folder, *actors())
    resume(folder, *actors()).close()


def test_a_lock_of_another_machine_is_respected(folder, monkeypatch):
    monkeypatch.setattr(lock, "_system_lock", lambda handle: (_ for _ in ()).throw(OSError))
    (folder / ".lock.owner").write_text("process 1 on somewhere-else")
    with pytest.raises(UserError, match="somewhere-else"):
        resume(folder, *actors())
