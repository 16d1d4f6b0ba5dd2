"""A run that was cut, at whatever moment, ends with the very bits of one that was not."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from command import contents
from safetensors.torch import load_file
from tiny_training import ENVIRONMENT, blank_model, command, inside, start, tensors, write_config
from torch import nn

from reflect_core.search.lock import RecordLock
from reflect_core.types import UserError
from trainer import checkpoint, loop
from trainer.config import TrainConfig
from trainer.folder import checkpoints
from trainer.interrupt import held


class Killed(BaseException):
    """Stands for a SIGKILL: nothing in the trainer catches it, and what was in memory is forgotten."""


class Line:
    """A task of two small layers, with a hook at every place where a cut may come."""

    def __init__(self, hook=lambda place: None):
        torch.manual_seed(0)
        self.hook, self.data = hook, {"points": 8}
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))

    def named_parameters(self):
        return self.model.named_parameters()

    def matrices(self):
        return {"0.weight", "2.weight"}

    def loss(self, step, generator):
        x = torch.randn(8, 4, generator=generator)
        self.hook("loss")
        return (self.model(x) - x[:, :2].sin() * 3).square().mean()

    def sample(self, file, step):
        file.parent.mkdir(exist_ok=True)
        file.write_text("half of a pic")
        self.hook("sample")
        weight = self.model[0].weight
        file.write_text(f"{weight.sum()}")
        return {"weight": float(weight.sum())}

    def export(self, folder, provenance):
        folder.mkdir()
        (folder / "half.txt").touch()
        self.hook("export")
        torch.save(self.model.state_dict(), folder / "weights")
        (folder / "provenance.json").write_text(json.dumps(provenance))


@pytest.fixture(autouse=True)
def ctrl_c():
    """Ctrl+C as Python has it, also where the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def settings(out: Path, optimizer="muon", **changes) -> TrainConfig:
    return TrainConfig(**({"name": "line", "task": "vae", "out": str(out), "steps": 12, "batch": 8, "warmup": 2,
                           "optimizer": optimizer, "save_every": 3, "sample_every": 4, "log_every": 1} | changes))


def go(config, hook=lambda place: None, commit="c1"):
    return loop.train(config, Line(hook), {"commit": commit})


def result(out: Path):
    """Everything that must be the same: the exported weights, the newest checkpoint, sheets, and the log."""
    exported = torch.load(out / "result" / "weights")
    log = [{k: v for k, v in json.loads(line).items() if k != "samples_per_second"}
           for line in (out / "log.jsonl").read_text().splitlines()]
    sheets = {p.name: p.read_text() for p in (out / "samples").iterdir()}
    return {k: v.numpy().tobytes() for k, v in exported.items()}, tensors(out / "step-12.safetensors"), sheets, log


def nth(place, count, act):
    """A hook that acts when `place` comes up for the count-th time."""
    seen = []

    def hook(where):
        if where == place:
            seen.append(where)
            if len(seen) == count:
                act()
    return hook


def kill():
    raise Killed


def press():
    signal.raise_signal(signal.SIGINT)


@pytest.fixture
def places(monkeypatch):
    """Hooks in the middle of an optimiser's step, of the averages' update, of their exchange, and of a save."""
    active = {"hook": lambda place: None}

    def around(owner, name, place, after=False):
        original = getattr(owner, name)

        def wrapped(*args, **kwargs):
            if not after:
                active["hook"](place)
            value = original(*args, **kwargs)
            if after:
                active["hook"](place)
            return value
        monkeypatch.setattr(owner, name, wrapped)

    around(torch.optim.AdamW, "step", "half of the optimisers", after=True)
    around(loop.Averages, "update", "optimisers done")
    around(loop.Averages, "update", "averages done", after=True)
    around(checkpoint, "save_file", "saving")
    around(checkpoint.os, "replace", "written")
    around(checkpoint.os, "replace", "renamed", after=True)

    def use(hook):
        active["hook"] = hook
        return hook
    return use


PLACES = [("loss", 1), ("loss", 7), ("half of the optimisers", 5), ("optimisers done", 5), ("averages done", 5),
          ("averages done", 12), ("saving", 1), ("saving", 3), ("written", 2), ("written", 5), ("renamed", 4),
          ("sample", 1), ("sample", 2), ("sample", 4), ("export", 1)]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("act, raised", [(kill, Killed), (press, KeyboardInterrupt)], ids=["killed", "interrupted"])
def test_cut_anywhere(places, optimizer, act, raised, tmp_path):
    go(settings(tmp_path / "whole", optimizer))
    expected = result(tmp_path / "whole")
    for place, count in PLACES:
        out = tmp_path / f"{place}-{count}"
        hook = places(nth(place, count, act))
        with pytest.raises(raised):
            go(settings(out, optimizer), hook)
        places(lambda place: None)
        assert go(settings(out, optimizer)) == out / "result"
        assert result(out) == expected, (place, count)
        assert not list(out.glob("*.partial")) and not (out / "result" / "half.txt").stat().st_size


def test_cut_again_and_again(tmp_path):
    go(settings(tmp_path / "whole"))
    out, random_ = tmp_path / "cut", random.Random(5)
    cuts = 0
    for _ in range(60):
        place, act = random_.choice(["loss", "sample"]), random_.choice([kill, press])
        try:
            go(settings(out), nth(place, random_.randint(2, 4) if place == "loss" else 1, act))
            break
        except (Killed, KeyboardInterrupt):
            cuts += 1
    assert 1 < cuts < 60 and result(out) == result(tmp_path / "whole")


def test_a_kill_between_figures_and_their_sheet_logs_them_once(tmp_path, monkeypatch):
    """At a step that is on disk already, so that the run goes on from behind the figures."""
    go(settings(tmp_path / "whole"))
    replace = os.replace

    def killing(source, target):
        if Path(target).name == "0000012.png":
            raise Killed
        replace(source, target)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(os, "replace", killing)
        go(settings(tmp_path / "cut"))
    figures = read(tmp_path / "cut" / "log.jsonl").splitlines()[-1]
    assert '"weight"' in figures and json.loads(figures)["step"] == 12
    go(settings(tmp_path / "cut"))
    assert result(tmp_path / "cut") == result(tmp_path / "whole")


def test_figures_are_kept_where_older_sheets_were_thrown_away(half_way, tmp_path):
    go(settings(tmp_path / "whole"))
    (half_way / "samples" / "0000004.png").unlink()
    go(settings(half_way))
    assert result(half_way)[3] == result(tmp_path / "whole")[3]


def test_accumulated_steps_resume_too(tmp_path):
    go(settings(tmp_path / "whole", accumulate=3))
    with pytest.raises(KeyboardInterrupt):
        go(settings(tmp_path / "cut", accumulate=3), nth("loss", 17, press))
    go(settings(tmp_path / "cut", accumulate=3))
    assert result(tmp_path / "cut") == result(tmp_path / "whole")


def test_ctrl_c_waits_for_the_end_of_a_block():
    reached = []
    with pytest.raises(KeyboardInterrupt):
        with held():
            with held():
                press()
                reached.append("inner")
            reached.append("outer")
    assert reached == ["inner", "outer"]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with held():
        press()


def test_averages_are_left_whatever_happens(tmp_path):
    """Interrupted while the averages stood in for the weights: the checkpoint has them in their places."""
    with pytest.raises(KeyboardInterrupt):
        go(settings(tmp_path / "a", sample_every=5), nth("sample", 2, press))
    with pytest.raises(KeyboardInterrupt):
        go(settings(tmp_path / "b", sample_every=100), nth("loss", 6, press))
    assert tensors(tmp_path / "a" / "step-5.safetensors") == tensors(tmp_path / "b" / "step-5.safetensors")


@pytest.fixture
def half_way(tmp_path):
    """A run that was interrupted at step 7, with checkpoints of steps 6 and 7."""
    with pytest.raises(KeyboardInterrupt):
        go(settings(tmp_path / "run"), nth("loss", 8, press))
    assert [p.name for p in checkpoints(tmp_path / "run")] == ["step-6.safetensors", "step-7.safetensors"]
    return tmp_path / "run"


@pytest.mark.parametrize("harm", [lambda raw: raw[:-9], lambda raw: raw[:40], lambda raw: b"",
                                  lambda raw: raw[:-9] + bytes([raw[-9] ^ 1]) + raw[-8:]],
                         ids=["torn", "torn in its head", "empty", "a bit flipped"])
def test_a_damaged_checkpoint_is_named_and_never_passed_over(half_way, harm, tmp_path):
    go(settings(tmp_path / "whole"))
    newest = half_way / "step-7.safetensors"
    newest.write_bytes(harm(newest.read_bytes()))
    before = contents(half_way)
    with pytest.raises(UserError, match=r"step-7.safetensors is damaged .* delete it to go on from the one before"):
        go(settings(half_way))
    assert contents(half_way) == before
    newest.unlink()
    go(settings(half_way))
    assert result(half_way) == result(tmp_path / "whole")


@pytest.mark.parametrize("changes, said", [
    ({"lr": 0.5}, "was written with lr = 0.001, the config says 0.5"),
    ({"seed": 1}, "was written with seed = 0"), ({"batch": 2}, "was written with batch = 8"),
    ({"accumulate": 2}, "was written with accumulate = 1"),
    ({"optimizer": "adamw"}, "was written with optimizer = 'muon'"),
    ({"model": {"kl": 0.1}}, "was written with model.kl = 0.0005, the config says 0.1"),
    ({"data": {"pictures": 9}}, "was written with data.pictures = 8000, the config says 9"),
    ({"steps": 5}, "is at step 7, the config says steps = 5"),
])
def test_changed_settings_are_refused(half_way, changes, said):
    before = contents(half_way)
    with pytest.raises(UserError, match=said) as error:
        go(settings(half_way, **changes))
    assert "or choose another `out`" in str(error.value) and contents(half_way) == before


def test_settings_that_may_change(half_way):
    go(settings(half_way, steps=14, save_every=5, sample_every=7, log_every=2, keep=1, compile=True))
    assert [p.name for p in checkpoints(half_way)] == ["step-14.safetensors"]


def test_other_data_or_another_model_is_refused(half_way):
    task = Line()
    task.data = {"points": 9}
    with pytest.raises(UserError, match=r'trained on other data \({"points": 8}; now {"points": 9}\)'):
        loop.train(settings(half_way), task, {"commit": "c1"})
    task = Line()
    task.model[0] = nn.Linear(4, 8, bias=False)
    task.model[2] = nn.Linear(8, 3)
    with pytest.raises(UserError, match=r"weights/2.weight has shape \(2, 8\); expected \(3, 8\)"):
        loop.train(settings(half_way), task, {"commit": "c1"})


def test_leftovers_of_a_killed_process_do_no_harm(half_way, tmp_path):
    go(settings(tmp_path / "whole"))
    (half_way / "step-9.partial").write_bytes(b"half")
    (half_way / "bank-x.partial").write_bytes(b"half")
    (half_way / "result.partial").mkdir()
    (half_way / "samples" / "next.png").write_text("half")
    with (half_way / "log.jsonl").open("a") as log:
        log.write('{"step": 8, "loss": 1.0}\n{"step": 9, "lo')
    go(settings(half_way))
    assert result(half_way) == result(tmp_path / "whole")
    assert not list(half_way.glob("*.partial"))


def test_a_finished_run_stays_as_it_is(tmp_path):
    go(settings(tmp_path))
    before = contents(tmp_path)
    go(settings(tmp_path), commit="c2")
    assert contents(tmp_path) == before


def test_every_commit_that_trained_is_in_the_provenance(half_way):
    go(settings(half_way), commit="c2")
    found = json.loads((half_way / "result" / "provenance.json").read_text())
    assert (found["commit"], found["steps"], found["samples"], found["data"]) == ("c1 c2", 12, 96, {"points": 8})


def test_a_loss_that_is_no_number_ends_the_run_and_harms_nothing(half_way):
    class Broken(Line):
        def loss(self, step, generator):
            return super().loss(step, generator) * float("nan" if step == 9 else "1")

    with pytest.raises(UserError, match="the loss became nan at step 9; .* try a lower lr than 0.001, .* The "
                                        "checkpoint of step 9 is whole"):
        loop.train(settings(half_way), Broken(), {"commit": "c1"})


class Infinite(torch.autograd.Function):
    """A loss that looks well and whose gradient does not: as bf16 makes them."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * float("nan")


def test_a_gradient_that_is_no_number_never_reaches_the_weights(tmp_path):
    """Not even where the next thing to be done is to save them."""
    class Broken(Line):
        def loss(self, step, generator):
            loss = super().loss(step, generator)
            return Infinite.apply(loss) if step == 5 else loss

    with pytest.raises(UserError, match="the gradient's norm became nan at step 5; .* The checkpoint of step 3 is"):
        loop.train(settings(tmp_path), Broken(), {"commit": "c1"})
    assert [p.name for p in checkpoints(tmp_path)] == ["step-3.safetensors"]
    assert all(t.isfinite().all() for t in load_file(tmp_path / "step-3.safetensors").values())
    with pytest.raises(UserError, match="became nan at step 5; .* There is no checkpoint yet"):
        loop.train(settings(tmp_path / "other", save_every=100), Broken(), {"commit": "c1"})


def test_a_disk_that_is_full(half_way, monkeypatch):
    before = contents(half_way)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(UserError, match="cannot write the checkpoint .*No space left"):
        go(settings(half_way))
    after = contents(half_way)
    assert {k: v for k, v in after.items() if k.startswith("step-")} == {
        k: v for k, v in before.items() if k.startswith("step-")}


# Real processes, killed for real.

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
