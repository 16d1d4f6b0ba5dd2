"""Before reflection tuning: the context transformer taught by itself what the mended picture has, and where."""

import copy
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_training import inside, tensors, tiny_configs, write_config

from reflect_core.generators.reflect_dit.context import ContextEncoder
from trainer.config import load_config
from trainer.tasks.sana.context import laid, told_forward
from trainer.tasks.sana.guide import own_places
from trainer.tasks.sana.parts import build_transformer
from trainer.tasks.sana.tell import TellTask
from trainer.tasks.sana.vae import load_autoencoder
from trainer.train import main

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a base and the context that was taught on it."""
    folder = tmp_path_factory.mktemp("context")
    for task in ("sana_vae", "sana_text", "sana_vision", "sana_base", "reflect_context"):
        assert main(["--config", str(write_config(folder, task))]) == 0, task
    return folder


def test_the_result_is_the_base_with_a_context_that_is_not_heard_yet(folder):
    weights = load_file(folder / "reflect_context" / "result" / WEIGHTS)
    base = load_file(folder / "sana_base" / "result" / "transformer" / WEIGHTS)
    assert all(torch.equal(weights[name], value) for name, value in base.items())
    assert not weights["reflection_norm.weight"].any() and not any("head" in name for name in weights)
    assert weights["clip_projection.linear_1.bias"].any()  # which starts at zero
    log = (folder / "reflect_context" / "log.jsonl").read_text()
    assert '"shuffled_fix_rate"' in log and '"kept"' in log
    assert len(list((folder / "reflect_context" / "samples").iterdir())) == 3


def test_reflection_tuning_starts_from_it(folder, tmp_path, capsys):
    made, start = tiny_configs(folder)["reflect"], str(folder / "reflect_context" / "result")
    done = inside(capsys, "--config", write_config(tmp_path, "reflect", **{
        **made, "model": {**made["model"], "checkpoint": start}}))
    assert done.code == 0, done.err
    assert load_file(tmp_path / "reflect" / "result" / WEIGHTS)["reflection_norm.weight"].any()


def test_a_run_that_was_cut_ends_with_the_same_bits(folder, tmp_path, capsys):
    cut = write_config(tmp_path, "reflect_context", **tiny_configs(folder)["reflect_context"])
    run = tmp_path / "reflect_context"
    run.mkdir()
    for name in ("step-4.safetensors", "trainer.json"):
        shutil.copy(folder / "reflect_context" / name, run / name)
    done = inside(capsys, "--config", cut)
    assert done.code == 0 and "resumed at step 4" in done.out
    assert tensors(run / "result" / WEIGHTS) == tensors(folder / "reflect_context" / "result" / WEIGHTS)


def test_it_learns_what_becomes_of_the_picture(folder, tmp_path):
    """Four flawed pictures by heart: the told latents come near the mended ones, where they differ too."""
    made = tiny_configs(folder)["reflect_context"]
    task = TellTask(load_config(write_config(tmp_path, "reflect_context", **{
        **made, "batch": 8, "model": {**made["model"], "pairs": 1}})))
    task.rows = task.rows[:4]
    optimizer = torch.optim.Adam([p for _, p in task.named_parameters()], 0.01)
    losses = []
    for step in range(150):
        loss = task.loss(step, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-10:]) < 0.25 * losses[0]
    assert not any(p.grad is not None for p in task.transformer.parameters())


@torch.no_grad()
def test_each_row_tells_of_its_last_picture(folder):
    """Rows of one and two pairs in one batch, and each alone."""
    torch.manual_seed(0)
    settings = load_config(write_config(folder, "sana_base", out=str(folder / "unused"))).sections()[0]
    transformer = build_transformer(settings, load_autoencoder(folder / "sana_vae" / "result"), 32)
    context, head = ContextEncoder(32, 12, 32, 2, 16, 2), torch.nn.Linear(32, 4)
    for part in (transformer, context, head):
        for parameter in part.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    lengths, t = [[5, 2], [3]], torch.tensor([900.0, 500.0])
    images, texts = torch.randn(4, 4, 12), torch.randn(4, 6, 32)
    index, inside_, _ = laid(lengths, ["both", "both"], 2, 4, 6)
    told = told_forward(head, own_places(lengths, 0, 4, 8, 8), transformer, context, t, images, texts, index, inside_)
    assert told.shape == (2, 64, 4)
    for n, mine in enumerate((slice(0, 2), slice(2, 3))):
        index, inside_, _ = laid(lengths[n:n + 1], ["both"], len(lengths[n]), 4, 6)
        alone = told_forward(head, own_places(lengths[n:n + 1], 0, 4, 8, 8), transformer, context, t[n:n + 1],
                             images[mine], texts[mine], index, inside_)
        assert torch.allclose(told[n:n + 1], alone, atol=2e-5)
    # A quarter of the picture changes with its own token of the last picture more than the others do.
    other = copy.deepcopy(images)
    other[1, 0] += 1
    index, inside_, _ = laid(lengths, ["both", "both"], 2, 4, 6)
    changed = told_forward(head, own_places(lengths, 0, 4, 8, 8), transformer, context, t, other, texts, index, inside_)
    moved = (changed - told)[0].abs().mean(-1).view(8, 8)
    assert moved[:4, :4].mean() > 2 * moved[4:, 4:].mean() and torch.equal(changed[1], told[1])
