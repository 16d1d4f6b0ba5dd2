"""A base that learns from corrections too."""

import json

import pytest
import torch
from PIL import Image
from tiny_training import inside, tiny_configs, write_config

from reflect_core.generators.flux_corrector.transformer import Condition, flux_forward
from trainer.config import load_config
from trainer.loop import step_generator
from trainer.tasks.base import BaseTask


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds the results of a `vae` and a `text` run, as tests of the chain make them."""
    from trainer.train import main

    folder = tmp_path_factory.mktemp("edits")
    for task in ("vae", "text"):
        assert main(["--config", str(write_config(folder, task))]) == 0
    return folder


def told(folder, tmp_path, **changes):
    """The config of a base that learns from corrections."""
    base = tiny_configs(folder)["base"]
    model = {**base["model"], "edits": 1.0, **changes.pop("model", {})}
    data = {**base["data"], "triplets": 12, **changes.pop("data", {})}
    return write_config(tmp_path, "base", model=model, data=data, batch=4, seed=2, **changes)


def task_of(file):
    config = load_config(file)
    torch.manual_seed(config.seed)
    return BaseTask(config)


def test_it_shows_corrections_and_says_how_many_it_learned_from(folder, tmp_path, capsys):
    result = inside(capsys, "--config", told(folder, tmp_path, model={"edits": 0.5}))
    assert result.code == 0, result.error
    lines = [json.loads(line) for line in (tmp_path / "base" / "log.jsonl").read_text().splitlines()]
    assert all({"overall", "fix_rate", "kept"} <= set(line) for line in lines if "overall" in line)
    # A row for each task, then flawed, corrected and target; 66 pixels a row, twofold.
    assert Image.open(tmp_path / "base" / "samples" / "0000006.png").height == (7 + 3) * 66 * 2
    found = json.loads((tmp_path / "base" / "result" / "provenance.json").read_text())
    assert found["data"]["triplets"] == 12


def test_a_correction_is_of_the_flawed_picture_in_view(folder, tmp_path):
    task = task_of(told(folder, tmp_path))
    x0, clip_ids, t5_ids, drop, condition = task._edits(step_generator(1, 0))
    assert x0.shape == condition.shape == (4, 64, 16) and not torch.equal(x0, condition)
    for row in range(4):  # good and flawed picture are of one triplet
        at = [torch.equal(x0[row], good.float()) for good in task.bank["edit_good"]].index(True)
        assert torch.equal(condition[row], task.bank["edit_flawed"][at].float())
        expected = task.empty[1][0] if drop[row] else task.bank["edit_t5"][at].long()
        assert torch.equal(t5_ids[row], expected)
    with torch.no_grad():
        for parameter in task.transformer.parameters():  # at first every block is the identity
            parameter += 0.05 * torch.randn(parameter.shape)
    states, pooled = task._encode(clip_ids, t5_ids)
    t, guidance = torch.full((4,), 0.5), torch.ones(4)
    out = task._forward(x0, states, pooled, t, guidance, condition)
    plain = flux_forward(task.parts["transformer"], None, x0, states, pooled, t, guidance, *task.ids,
                         Condition(condition, task.condition_ids).tokens, task.condition_ids)
    assert torch.equal(out, plain)
    assert not torch.allclose(out, task._forward(x0, states, pooled, t, guidance, condition.flip(0)), atol=1e-6)


def test_the_share_of_corrections(folder, tmp_path, monkeypatch):
    task = task_of(told(folder, tmp_path, model={"edits": 0.25}))
    seen = []
    for name in ("_edits", "_scenes"):
        inner = getattr(task, name)
        monkeypatch.setattr(task, name, lambda g, inner=inner, name=name: seen.append(name) or inner(g))
    monkeypatch.setattr(task, "forward", lambda x, *rest: x)
    for step in range(200):
        task.loss(0, step_generator(2, step))
    assert 30 <= seen.count("_edits") <= 70 and len(seen) == 200


@pytest.mark.parametrize("model, said", [
    ({"edits": 1.5}, "model.edits is 1.5; expected a share from 0 to 1"),
    ({"condition_offset": [1]}, "expected two numbers, rows and columns"),
])
def test_settings_that_cannot_be_are_said(folder, tmp_path, capsys, model, said):
    result = inside(capsys, "--config", told(folder, tmp_path, model=model))
    assert result.code == 2 and said in result.error and "Traceback" not in result.error


def test_pictures_are_encoded_in_the_run_s_precision(folder, tmp_path):
    full = task_of(told(folder, tmp_path / "full")).bank
    half = task_of(told(folder, tmp_path / "half", precision="bf16")).bank
    for name in ("latents", "edit_flawed", "edit_good"):
        assert 0 < (full[name].float() - half[name].float()).abs().mean() < 0.05 * full[name].float().abs().mean()


def test_edits_need_triplets(folder, tmp_path, capsys):
    result = inside(capsys, "--config", told(folder, tmp_path, data={"triplets": 0}))
    assert result.code == 2 and "data.triplets is 0" in result.error
