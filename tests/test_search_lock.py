"""Two processes never write one record: by the system's locks, and where there are none."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import actors, finished_record

from reflect_core.search import load, lock, resume
from reflect_core.types import UserError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path):
    return finished_record(tmp_path / "run")


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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_neither_keeps_nor_breaks_the_lock(folder):
    """As a process of a data loader that outlives the run, or cleans up what it inherited."""
    held = lock.RecordLock(folder)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    cleaner = os.fork()
    if cleaner == 0:
        held.release()
        os._exit(0)
    os.waitpid(cleaner, 0)
    with pytest.raises(UserError, match="another process"):
        resume(folder, *actors())
    held.release()
    try:
        resume(folder, *actors()).close()
    finally:
        os.close(write)
        os.waitpid(child, 0)


@pytest.mark.parametrize("how", ["system", "by creating"])
def test_the_error_names_the_lock_file(folder, how, monkeypatch):
    name = ".lock"
    if how == "by creating":
        name = ".lock.owner"
        monkeypatch.setattr(lock, "_system_lock", lambda handle: (_ for _ in ()).throw(OSError))
    with resume(folder, *actors()):
        with pytest.raises(UserError, match=f"as {re.escape(str(folder / name))} says.*remove that file"):
            resume(folder, *actors())
    assert {p.name for p in folder.iterdir()} == {"run.jsonl", "pictures", ".lock"}


@pytest.mark.parametrize("how", ["system", "by creating"])
def test_no_room_for_the_owner_leaves_nothing_held(folder, how, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        patch.setattr(Path, "write_bytes", full)
        if how == "by creating":
            patch.setattr(lock, "_system_lock", lambda handle: (_ for _ in ()).throw(OSError))
        before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
        for _ in range(3):
            with pytest.raises(UserError, match="No space left"):
                resume(folder, *actors())
        if before:
            assert len(os.listdir("/proc/self/fd")) == before
    assert not (folder / ".lock.owner").exists()
    resume(folder, *actors()).close()


def test_a_lock_of_another_machine_is_respected(folder, monkeypatch):
    monkeypatch.setattr(lock, "_system_lock", lambda handle: (_ for _ in ()).throw(OSError))
    (folder / ".lock.owner").write_text("process 1 on somewhere-else")
    with pytest.raises(UserError, match="somewhere-else"):
        resume(folder, *actors())
