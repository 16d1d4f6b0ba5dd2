"""The trainer's command line, as the README uses it: from rendered scenes to a model folder that draws."""

import json
import shutil
import subprocess

import numpy as np
import pytest
import torch
from command import contents
from PIL import Image
from safetensors import safe_open
from tiny_training import ROOT, blank_model, inside, tiny_configs, train, write_config

from reflect_core.generators.flux_corrector import lora as lora_module
from reflect_core.generators.flux_corrector.pipeline import FluxCorrector
from reflect_core.types import Pair, Request

TASKS = ("vae", "base", "harvest", "corrector", "bundle")


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """The folder in which all five commands ran, one after the other, and what they printed."""
    folder = tmp_path_factory.mktemp("chain")
    printed = {}
    for task in TASKS:
        done = train("--config", write_config(folder, task), "--set", f"name=chain-{task}")
        assert done.returncode == 0, (task, done.stdout, done.stderr)
        printed[task] = done.stdout
        if task == "base":
            blank_model(folder / "base" / "result", folder / "blank")
    return folder, printed


def provenance(folder):
    return json.loads((folder / "provenance.json").read_text())


def test_every_command_says_how_far_it_is_and_where_the_result_lies(chain):
    folder, printed = chain
    assert "step 2/6 loss" in printed["base"] and "samples/s, " in printed["base"] and "min left" in printed["base"]
    assert "fix_rate" in printed["corrector"] and "eval_loss" in printed["corrector"]
    assert "batch 3/3: triplets" in printed["harvest"]
    for task, result in (("vae", "vae/result"), ("harvest", "harvest"), ("bundle", "bundle")):
        assert printed[task].splitlines()[-1] == f"done: {folder / result}"


def test_runs_leave_log_samples_and_the_newest_checkpoints(chain):
    folder, _ = chain
    for task in ("vae", "base", "corrector"):
        lines = [json.loads(line) for line in (folder / task / "log.jsonl").read_text().splitlines()]
        steps = tiny_configs(folder)[task]["steps"]
        assert lines[0]["step"] == 0 and lines[-1]["step"] == steps
        losses = [line for line in lines if "loss" in line]
        assert len(losses) == steps // 2 and all(line["samples_per_second"] > 0 for line in losses)
        sheets = sorted(p.name for p in (folder / task / "samples").iterdir())
        assert sheets[0] == "0000000.png" and sheets[-1] == f"{steps:07d}.png"
        assert len(list((folder / task).glob("step-*.safetensors"))) == 2
        assert not list((folder / task).glob("*.partial"))
    figures = json.loads((folder / "corrector" / "log.jsonl").read_text().splitlines()[-1])
    assert {"fix_rate", "kept", "eval_loss", "eval_loss_0.1", "eval_loss_0.9"} <= set(figures)


def test_the_result_draws_and_corrects(chain):
    folder, _ = chain
    generator = FluxCorrector.from_folder(folder / "bundle")
    assert generator.max_context == 1 and generator.defaults["steps"] == 2
    flawed = Image.new("RGB", (64, 64), "white")
    requests = [Request("a red circle", 1, steps=2), Request("a red circle", 1, steps=2,
                                                             context=(Pair("add a red circle", picture=flawed),))]
    pictures = [drawn.picture for drawn in generator.draw(requests)]
    assert [p.size for p in pictures] == [(64, 64)] * 2


def test_diffusers_draws_the_same_from_the_folder(chain):
    from diffusers import FluxPipeline

    folder, _ = chain
    pipe = FluxPipeline.from_pretrained(folder / "bundle", torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe("a red circle", height=64, width=64, num_inference_steps=2, guidance_scale=2.0,
                  max_sequence_length=24, generator=torch.Generator().manual_seed(1), output_type="np").images[0]
    ours = FluxCorrector.from_folder(folder / "bundle").draw([Request("a red circle", 1, steps=2, guidance=2.0)])[0]
    assert np.abs(np.asarray(ours.picture) / 255 - theirs).max() <= 1 / 255


def test_the_lora_has_the_published_keys(chain):
    folder, _ = chain
    with safe_open(folder / "bundle" / "lora" / "pytorch_lora_weights.safetensors", "pt") as file:
        keys = set(file.keys())
        assert file.metadata() == {"format": "pt"}
        assert file.get_tensor("transformer.x_embedder.lora_A.weight").dtype == torch.bfloat16
    paths = ["x_embedder"]
    paths += [f"transformer_blocks.0.{name}" for name in lora_module.DOUBLE_LAYERS]
    paths += [f"single_transformer_blocks.0.{name}" for name in lora_module.SINGLE_LAYERS]
    assert keys == {f"transformer.{path}.lora_{side}.weight" for path in paths for side in "AB"}


def test_weights_say_where_they_come_from(chain):
    folder, _ = chain
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    for task in ("vae", "base", "corrector"):
        found, config = provenance(folder / task / "result"), tiny_configs(folder)[task]
        assert found["config"]["name"] == f"chain-{task}" and found["config_file"] == f"{task}.yaml"
        assert (found["seed"], found["steps"]) == (config["seed"], config["steps"])
        assert found["samples"] == config["steps"] * config["batch"]
        assert found["commit"].removesuffix("-dirty") == (head.stdout.strip() or "unknown")
    assert provenance(folder / "vae" / "result")["data"]["rendered_scenes"] == 32
    assert provenance(folder / "base" / "result")["vae"]["config"]["name"] == "chain-vae"
    found = provenance(folder / "bundle")
    assert found["base"]["data"]["rendered_scenes"] == 24
    assert found["lora"]["data"]["triplets"] == 12 + len(
        (folder / "harvest" / "triplets.jsonl").read_text().splitlines())
    assert found["lora"]["base"]["config"]["name"] == "chain-base"
    assert found["bundle"]["config"]["name"] == "chain-bundle"


def test_harvested_triplets_are_an_ordinary_folder_of_triplets(chain):
    folder, _ = chain
    lines = [json.loads(line) for line in (folder / "harvest" / "triplets.jsonl").read_text().splitlines()]
    assert lines
    for line in lines:
        assert set(line) == {"prompt", "reflection", "flawed", "good"}
        for side in ("flawed", "good"):
            assert Image.open(folder / "harvest" / line[side]).size == (64, 64)
    counts = provenance(folder / "harvest")["data"]
    assert counts["right"] == counts["malformed"] == 0 < counts["triplets"] == len(lines) == 12 - counts["no_room"]


def test_a_bundle_replaces_a_model_folder_and_nothing_else(chain, tmp_path, capsys):
    folder, _ = chain
    file = write_config(tmp_path, "bundle", out=str(tmp_path / "out"), model={
        "base": str(folder / "base" / "result"), "lora": str(folder / "corrector" / "result")})
    mine = tmp_path / "out" / "my-thesis.txt"
    mine.parent.mkdir()
    mine.write_text("years of work")
    assert "is in the way" in inside(capsys, "--config", file).error
    assert mine.read_text() == "years of work"
    shutil.rmtree(mine.parent)
    shutil.copytree(folder / "bundle", tmp_path / "out")
    before = contents(tmp_path / "out")
    assert "most_megabytes" in inside(capsys, "--config", file, "--set", "model.most_megabytes=0.01").error
    assert "condition_sise" in inside(capsys, "--config", file, "--set", "data.options.condition_sise=64").error
    assert "no provenance.json" in inside(capsys, "--config", file, "--set", f"model.lora={folder}/bundle/lora").error
    assert contents(tmp_path / "out") == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle.yaml", "out"]
