"""Real processes of the trainer, killed at random moments: the same command goes on, to the same bits."""

import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from command import contents
from tiny_training import ENVIRONMENT, blank_model, command, inside, start, tensors, write_config

from reflect_core.search.lock import RecordLock


def read(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def wait_for(progress: Path, lines: int, process):
    """Until the file has so many lines, or the process has come to its end."""
    end = time.monotonic() + 120
    while read(progress).count("\n") < lines and process.exitcode is None:
        assert time.monotonic() < end
        time.sleep(0.002)


def never_cut(folder: Path, task: str) -> Path:
    """The folder of a run of 30 steps that went through at once."""
    process = start("--config", write_config(folder, task, steps=30, save_every=3, log_every=1), output=folder / "o")
    process.join()
    assert process.exitcode == 0, read(folder / "o")
    return folder / task


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    return never_cut(tmp_path_factory.mktemp("vae"), "vae")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return never_cut(tmp_path_factory.mktemp("text"), "text")


def killed_until_done(folder: Path, arguments, progress: Path, kills: list[int], randomness) -> str:
    """Start, kill when the progress file has so many lines (and a random moment later), start again."""
    for lines in kills:
        process = start(*arguments, output=folder / "output")
        wait_for(progress, lines, process)
        time.sleep(randomness.uniform(0, 0.03))
        process.kill()
        process.join()
        assert process.exitcode in (-signal.SIGKILL, 0)
    process = start(*arguments, output=folder / "output")
    process.join()
    assert process.exitcode == 0, read(folder / "output")
    return read(folder / "output")


def test_sigkill_vae(vae, tmp_path):
    file = write_config(tmp_path, "vae", steps=30, save_every=3, log_every=1)
    said = killed_until_done(tmp_path, ["--config", file], tmp_path / "vae" / "log.jsonl", [3, 9, 20], random.Random(1))
    assert "resumed at step" in said
    name = "diffusion_pytorch_model.safetensors"
    assert tensors(tmp_path / "vae" / "result" / name) == tensors(vae / "result" / name)


def test_sigkill_text(text, tmp_path):
    file = write_config(tmp_path, "text", steps=30, save_every=3, log_every=1)
    log = tmp_path / "text" / "log.jsonl"
    said = killed_until_done(tmp_path, ["--config", file], log, [3, 9, 20], random.Random(1))
    assert "resumed at step" in said
    for part in ("text_encoder", "text_encoder_2"):
        name = f"{part}/model.safetensors"
        assert tensors(tmp_path / "text" / "result" / name) == tensors(text / "result" / name)


def test_sigkill_base(vae, text, tmp_path):
    changes = {"steps": 20, "log_every": 1, "save_every": 3, "sample_every": 100}
    model = {"vae": str(vae / "result"), "text": str(text / "result"), "text_length": 24, "heads": 2, "head_dim": 16,
             "single_blocks": 1, "distil": 0.5}
    whole = write_config(tmp_path / "a", "base", model=model, **changes)
    process = start("--config", whole, output=tmp_path / "output")
    process.join()
    assert process.exitcode == 0, read(tmp_path / "output")
    file = write_config(tmp_path / "b", "base", model=model, **changes)
    killed_until_done(tmp_path, ["--config", file], tmp_path / "b" / "base" / "log.jsonl", [1, 8, 15], random.Random(2))
    a, b = (tmp_path / run / "base" / "result" / "transformer" / "diffusion_pytorch_model.safetensors" for run in "ab")
    assert tensors(a) == tensors(b)


@pytest.fixture(scope="module")
def base(vae, text, tmp_path_factory):
    """A model folder that draws nothing, so that there is something to add to every picture."""
    folder = tmp_path_factory.mktemp("base")
    file = write_config(folder, "base", steps=1, sample_every=1, model={
        "vae": str(vae / "result"), "text": str(text / "result"), "text_length": 24, "heads": 2, "head_dim": 16,
        "single_blocks": 1})
    process = start("--config", file, output=folder / "output")
    process.join()
    assert process.exitcode == 0, read(folder / "output")
    blank_model(folder / "base" / "result", folder / "blank")
    return folder / "blank"


def test_sigkill_harvest(base, tmp_path):
    model = {"base": str(base), "text_length": 24, "sample_steps": 1}
    whole = write_config(tmp_path / "a", "harvest", steps=8, model=model)
    process = start("--config", whole, output=tmp_path / "output")
    process.join()
    assert process.exitcode == 0, read(tmp_path / "output")
    file = write_config(tmp_path / "b", "harvest", steps=8, model=model)
    killed_until_done(tmp_path, ["--config", file], tmp_path / "b" / "harvest" / "progress.jsonl", [1, 3, 6],
                      random.Random(3))
    a, b = ({k: v for k, v in contents(tmp_path / run / "harvest").items()
             if k not in (".lock", "provenance.json", "settings.json")} for run in "ab")
    assert a == b and len(a) > 2
    before = contents(tmp_path / "b" / "harvest")
    process = start("--config", file, "--set", "seed=5", output=tmp_path / "other")
    process.join()
    assert process.exitcode == 2 and "was written with seed = 3, the config says 5" in read(tmp_path / "other")
    assert {k: v for k, v in contents(tmp_path / "b" / "harvest").items() if k != ".lock"} == {
        k: v for k, v in before.items() if k != ".lock"}


def test_harvest_cuts_off_what_a_kill_left(base, tmp_path, capsys):
    """Lines of a batch that is not in the progress, and a torn line of the progress."""
    file = write_config(tmp_path, "harvest", steps=2, model={"base": str(base), "text_length": 24, "sample_steps": 1})
    out = tmp_path / "harvest"
    assert inside(capsys, "--config", file).code == 0
    expected, progress = (out / "triplets.jsonl").read_bytes(), (out / "progress.jsonl").read_bytes()
    first = progress.splitlines(keepends=True)[0]
    for torn in (first, first + b'{"batch": 1, "byt', b"", progress.replace(b'"batch": 1', b'"batch": 7')):
        (out / "progress.jsonl").write_bytes(torn)
        (out / "triplets.jsonl").write_bytes(expected + b'{"prompt": "torn')
        assert inside(capsys, "--config", file).code == 0
        assert ((out / "triplets.jsonl").read_bytes(), (out / "progress.jsonl").read_bytes()) == (expected, progress)
    # The progress reached the disk and the triplets did not, as after a power cut.
    (out / "triplets.jsonl").write_bytes(expected[:-5])
    assert inside(capsys, "--config", file).code == 0
    assert (out / "triplets.jsonl").read_bytes() == expected


def test_harvest_leaves_a_folder_of_ones_own_alone(base, tmp_path, capsys):
    file = write_config(tmp_path, "harvest", model={"base": str(base), "text_length": 24})
    (tmp_path / "harvest").mkdir()
    (tmp_path / "harvest" / "triplets.jsonl").write_text("mine")
    assert "holds triplets.jsonl, which no run of this trainer made" in inside(capsys, "--config", file).error
    assert (tmp_path / "harvest" / "triplets.jsonl").read_text() == "mine"


def test_two_processes_do_not_train_in_one_folder(tmp_path, capsys):
    (tmp_path / "vae").mkdir()
    lock = RecordLock(tmp_path / "vae")
    assert "another process trains in" in inside(capsys, "--config", write_config(tmp_path, "vae")).error
    lock.release()


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_command(number, code, vae, tmp_path):
    """As a user presses Ctrl+C or a scheduler ends a job: saved, no traceback, and the same command goes on."""
    file = write_config(tmp_path, "vae", steps=30, save_every=1000, log_every=1)
    process = subprocess.Popen(command("--config", file), env=ENVIRONMENT, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    for line in process.stdout:
        if line.startswith("step 5/30"):
            process.send_signal(number)
            break
    out, err = process.communicate(timeout=120)
    assert process.returncode == code and "Traceback" not in err, err
    assert "interrupted: saved at step" in out and "the same command goes on from here" in out
    again = start("--config", file, output=tmp_path / "output")
    again.join()
    assert again.exitcode == 0 and "resumed at step" in read(tmp_path / "output")
    name = "diffusion_pytorch_model.safetensors"
    assert tensors(tmp_path / "vae" / "result" / name) == tensors(vae / "result" / name)
    shutil.rmtree(tmp_path / "vae")
