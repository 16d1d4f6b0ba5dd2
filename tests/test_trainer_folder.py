"""A run touches nothing in its folder but what a run made: what is somebody else's is refused or left alone."""

import json

import pytest
import torch
from command import contents
from safetensors.torch import save_file
from tiny_training import inside, write_config

from trainer.folder import OWN, claim, tidy


def put(folder, *names):
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("years of work")


@pytest.mark.parametrize("task, name", [(task, name) for task in OWN for name in OWN[task]])
def test_somebody_elses_folder_is_refused_untouched(task, name, tmp_path, capsys):
    """Under every name that a run would write; before models are looked for, in folders as other programs have them."""
    out = tmp_path / task
    put(out, "notes.txt", "half.partial", name if "." in name and name != "result.partial" else f"{name}/cat.png")
    before = contents(out)
    error = inside(capsys, "--config", write_config(tmp_path, task)).error
    assert f"{out} holds {name}, which no run of this trainer made" in error and "Choose another `out`" in error
    assert {k: v for k, v in contents(out).items() if k != ".lock"} == before


def test_a_users_files_beside_a_run_are_left_alone(tmp_path, capsys):
    """Whatever their names look like: before the first run and again before the next ones."""
    out, file = tmp_path / "vae", write_config(tmp_path, "vae")
    mine = ("notes.txt", "thesis.partial", "bank.partial", "pictures/1.png")
    put(out, *mine)
    assert inside(capsys, "--config", file).code == 0
    later = ("samples/cat.png", "samples/12.png", "samples/sub/0000099.png", "step-x.safetensors")
    put(out, *later)
    assert inside(capsys, "--config", file, "--set", "steps=8").code == 0
    assert all((out / name).read_text() == "years of work" for name in mine + later)


def test_a_folder_belongs_to_one_task(tmp_path, capsys):
    assert inside(capsys, "--config", write_config(tmp_path, "vae")).code == 0
    before = contents(tmp_path / "vae")
    for task in ("corrector", "harvest"):
        error = inside(capsys, "--config", write_config(tmp_path, task), "--set", f"out={tmp_path / 'vae'}").error
        assert f"says that the task vae runs in {tmp_path / 'vae'}; expected {task}" in error
    assert {k: v for k, v in contents(tmp_path / "vae").items() if k != ".lock"} == {
        k: v for k, v in before.items() if k != ".lock"}


@pytest.mark.parametrize("text", ["", "[]", "{}", "\xff"])
def test_a_marker_that_is_none(text, tmp_path, capsys):
    put(tmp_path / "vae", "samples/cat.png")
    (tmp_path / "vae" / "trainer.json").write_bytes(text.encode("latin-1"))
    error = inside(capsys, "--config", write_config(tmp_path, "vae")).error
    assert "trainer.json is not what this trainer writes" in error
    assert (tmp_path / "vae" / "samples" / "cat.png").exists()


def test_runs_from_before_there_was_a_marker(tmp_path, capsys):
    """They are known by a checkpoint, or by a harvest's settings, and go on."""
    file, out = write_config(tmp_path, "vae"), tmp_path / "vae"
    assert inside(capsys, "--config", file).code == 0
    (out / "trainer.json").unlink()
    done = inside(capsys, "--config", file, "--set", "steps=8")
    assert done.code == 0 and "resumed at step 6" in done.out
    put(tmp_path / "old", "triplets.jsonl", "progress.jsonl")
    (tmp_path / "old" / "settings.json").write_text('{"config": {}, "base": "0"}')
    claim(tmp_path / "old", "harvest")
    assert json.loads((tmp_path / "old" / "trainer.json").read_text()) == {"task": "harvest"}


def test_another_trainers_checkpoint_is_no_mark(tmp_path, capsys):
    out = tmp_path / "vae"
    put(out, "log.jsonl")
    for metadata in (None, {"format": "pt"}):
        save_file({"weight": torch.zeros(2)}, out / "step-3.safetensors", metadata)
        assert "holds log.jsonl, which no run" in inside(capsys, "--config", write_config(tmp_path, "vae")).error
    assert (out / "log.jsonl").read_text() == "years of work"


def test_what_is_behind_a_checkpoint_is_taken_away(tmp_path):
    entries = [{"step": 0, "weight": 1.0}, {"step": 2, "loss": 1.0}, {"step": 4, "loss": 1.0},
               {"step": 4, "weight": 2.0}, {"step": 5, "loss": 1.0}]
    lines = [json.dumps(entry) for entry in entries]
    put(tmp_path, "samples/0000000.png", "samples/0000004.png", "samples/0000005.png", "samples/next.png")
    (tmp_path / "log.jsonl").write_text("\n".join([*lines, '"torn', "[1]", ""]))
    tidy(tmp_path, 4)
    assert (tmp_path / "log.jsonl").read_text().splitlines() == lines[:4]
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == ["0000000.png", "0000004.png"]
    (tmp_path / "samples" / "0000004.png").unlink()
    tidy(tmp_path, 4)
    assert (tmp_path / "log.jsonl").read_text().splitlines() == lines[:3]
    tidy(tmp_path, -1)
    assert (tmp_path / "log.jsonl").read_text() == "" and not list((tmp_path / "samples").iterdir())
