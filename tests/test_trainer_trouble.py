"""What the machine does to a run: one clear line, exit code 2, no traceback; faults of the code keep theirs."""

import signal

import pytest
import torch
from tiny_training import inside, write_config

from reflect_core.generators.memory import enough_memory
from trainer.interrupt import Terminated, held, terminable
from trainer.tasks.vae import VaeTask


def raising(error):
    def act(*args, **kwargs):
        raise error
    return act


def too_large(*args):
    torch.empty(10**15)


def too_large_for_the_library(*args):
    with enough_memory():
        torch.empty(10**15)


@pytest.mark.parametrize("act", [
    too_large, too_large_for_the_library, raising(MemoryError()),
    raising(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore lines")),
    raising(RuntimeError("MPS backend out of memory (MPS allocated: 5.00 GB)")),
], ids=["cpu", "said by the library", "python", "cuda", "mps"])
def test_no_memory(act, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(VaeTask, "loss", act)
    error = inside(capsys, "--config", write_config(tmp_path, "vae")).error
    assert "not enough memory (" in error
    assert "try a smaller `batch` with a larger `accumulate`" in error and "model.checkpointing: true" in error
    assert "encoder_device" not in error and "more lines" not in error


@pytest.mark.parametrize("error, said", [
    (OSError(28, "No space left on device", "samples/next.png"), "samples/next.png: No space left on device; expected"),
    (PermissionError(13, "Permission denied", "log.jsonl"), "log.jsonl: Permission denied; expected a disk"),
    (OSError("broken data stream"), "error: broken data stream; expected"),
])
def test_no_room_and_no_permission(error, said, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(VaeTask, "sample", raising(error))
    line = inside(capsys, "--config", write_config(tmp_path, "vae")).error
    assert said in line and "the same command goes on from the last checkpoint" in line


def test_a_file_that_safetensors_cannot_write(monkeypatch, tmp_path, capsys):
    from safetensors.torch import save_file

    def export(self, folder, provenance):
        save_file({"a": torch.zeros(1)}, str(folder / "no such folder" / "file"))
    monkeypatch.setattr(VaeTask, "export", export)
    assert "No such file or directory" in inside(capsys, "--config", write_config(tmp_path, "vae")).error


def test_a_fault_of_the_code_keeps_its_traceback(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(VaeTask, "loss", raising(RuntimeError("shapes do not match")))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        inside(capsys, "--config", write_config(tmp_path, "vae"))


def test_sigterm_is_raised_where_it_is_wanted_and_nowhere_else():
    before = signal.getsignal(signal.SIGTERM)
    reached = []
    with pytest.raises(Terminated):
        with terminable(), held(), held():
            signal.raise_signal(signal.SIGTERM)
            reached.append("the end of the block")
    assert reached and signal.getsignal(signal.SIGTERM) is before
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with terminable(), held():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_ctrl_c_while_the_handlers_are_put_back_loses_none(monkeypatch):
    """Pressed within a block: SIGTERM's handler is back before it takes effect."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with terminable():
            mine = signal.getsignal(signal.SIGTERM)
            with pytest.raises(KeyboardInterrupt):
                with held():
                    signal.raise_signal(signal.SIGINT)
            assert signal.getsignal(signal.SIGTERM) is mine
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
