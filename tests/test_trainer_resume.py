"""A run that was cut, at whatever moment, ends with the very bits of one that was not."""

import json
import os
import random
import signal
from pathlib import Path

import pytest
import torch
from command import contents
from safetensors.torch import load_file
from tiny_training import tensors
from torch import nn

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
    figures = (tmp_path / "cut" / "log.jsonl").read_text().splitlines()[-1]
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
