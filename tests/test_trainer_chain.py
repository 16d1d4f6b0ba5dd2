"""The trainer's command line, as the README uses it: from rendered scenes to a model folder that draws."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from command import contents
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_training import ROOT, blank_model, inside, tensors, tiny_configs, train, write_config

from reflect_core.generators.flux_corrector import lora as lora_module
from reflect_core.generators.flux_corrector.folder import lora_options
from reflect_core.generators.flux_corrector.pipeline import FluxCorrector
from reflect_core.types import Pair, Request
from trainer.tasks.common import portable

TASKS = ("vae", "text", "base", "harvest", "corrector", "bundle")


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """The folder in which all six commands ran, one after the other, and what they printed."""
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
    assert {"fix_rate", "kept", "fresh_rate", "eval_loss", "eval_loss_0.1", "eval_loss_0.9"} <= set(figures)


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


def test_text_encoders_are_not_trained_with_the_base(chain):
    folder, _ = chain
    for part in ("text_encoder", "text_encoder_2"):
        before, after = (load_file(folder / run / "result" / part / "model.safetensors") for run in ("text", "base"))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[k].bfloat16(), after[k]) for k in after), part


def test_a_base_goes_on_from_another(chain, tmp_path, capsys):
    folder, _ = chain
    start, file = folder / "base" / "result", Path("transformer") / "diffusion_pytorch_model.safetensors"
    model = {**tiny_configs(folder)["base"]["model"], "start": str(start)}
    # Too small a step to be seen in bf16: what is exported is what it began with.
    config = write_config(tmp_path, "base", model=model, steps=1, lr=1e-12, weight_decay=0.0, ema=0.0)
    assert inside(capsys, "--config", config).code == 0
    assert tensors(tmp_path / "base" / "result" / file) == tensors(start / file)
    told = provenance(tmp_path / "base" / "result")
    assert told["start"] == provenance(start) and told["data"]["start"]
    larger = shutil.copytree(start, tmp_path / "larger")
    save_file({**load_file(larger / file), "one.block.more": torch.zeros(2)}, larger / file)
    for change, said in (({"heads": 3}, "expected (48, "), ({"single_blocks": 2}, "is None; expected ("),
                         ({"start": str(larger)}, "one.block.more is (2,); expected None")):
        other = write_config(tmp_path / "other", "base", model={**model, **change}, steps=1)
        result = inside(capsys, "--config", other)
        assert result.code == 2 and "model.start" in result.error and said in result.error, change


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
    for task in ("vae", "text", "base", "corrector"):
        found, config = provenance(folder / task / "result"), tiny_configs(folder)[task]
        assert found["config"]["name"] == f"chain-{task}" and found["config_file"] == f"{task}.yaml"
        assert (found["seed"], found["steps"]) == (config["seed"], config["steps"])
        assert found["samples"] == config["steps"] * config["batch"]
        assert found["commit"].removesuffix("-dirty") == (head.stdout.strip() or "unknown")
    assert provenance(folder / "vae" / "result")["data"]["rendered_scenes"] == 32
    assert provenance(folder / "text" / "result")["data"]["sentences"] == 32
    for part in ("vae", "text"):
        assert provenance(folder / "base" / "result")[part]["config"]["name"] == f"chain-{part}"
    found = provenance(folder / "bundle")
    assert found["base"]["data"]["rendered_scenes"] == 24
    assert found["lora"]["data"]["triplets"] == 12 + len(
        (folder / "harvest" / "triplets.jsonl").read_text().splitlines())
    assert found["lora"]["base"]["config"]["name"] == "chain-base"
    corrupted, harvested = found["lora"]["sources"]
    assert corrupted == "corrupted" and harvested["config"]["name"] == "chain-harvest"
    assert found["bundle"]["config"]["name"] == "chain-bundle"
    config = found["lora"]["config"]
    assert config["model"]["drop_text"] == 0.1 and config["data"]["sources"][0]["repeat"] == 1  # defaults
    assert config["model"]["base"] == "result" and config["data"]["sources"][1]["path"] == "harvest"


def test_nothing_that_is_passed_on_names_a_place_on_this_machine(chain):
    folder, _ = chain
    files = [file for result in ("vae/result", "text/result", "base/result", "harvest", "corrector/result", "bundle")
             for file in (folder / result).rglob("*.json") if file.name != "settings.json"]
    assert len([file for file in files if file.name == "provenance.json"]) == 6
    assert not [file for file in files if str(folder) in (text := file.read_text()) or str(ROOT) in text]


def test_paths_without_a_machine():
    paths = {"inside": str(ROOT / "runs" / "a"), "outside": "/home/me/a b/model", "windows": "C:\\Users\\me\\model",
             "relative": ["runs/a/result", "../b"], "text": "and/or", "number": 3, "none": None}
    assert portable(paths) == {"inside": "runs/a", "outside": "model", "windows": "model",
                               "relative": ["runs/a/result", "../b"], "text": "and/or", "number": 3, "none": None}


def test_a_corrector_says_how_to_draw_with_it(chain):
    """Beside the weights, and from there in the bundle; what the bundle's config says comes on top."""
    folder, _ = chain
    trained = {"condition_size": 64, "condition_offset": None, "max_sequence_length": 24, "posterior": "mode"}
    result = folder / "corrector" / "result"
    assert json.loads((result / "reflect.json").read_text()) == {"options": trained}
    assert lora_options(result) == lora_options(result / "pytorch_lora_weights.safetensors") == trained
    assert lora_options(folder / "base") == {}
    settings = json.loads((folder / "bundle" / "reflect.json").read_text())
    assert settings["options"] == {**trained, "max_batch": 4} and "allow_dirty" not in settings
    options = FluxCorrector.from_folder(folder / "bundle").options
    assert (options.max_sequence_length, options.posterior, options.max_batch) == (24, "mode", 4)


def test_weights_of_uncommitted_code_are_not_bundled(chain, tmp_path, capsys):
    folder, _ = chain
    sources = {name: shutil.copytree(folder / task / "result", tmp_path / name)
               for name, task in (("base", "base"), ("lora", "corrector"))}
    file = write_config(tmp_path, "bundle", model={key: str(path) for key, path in sources.items()},
                        data={"options": {"condition_offset": [0, 0]}})

    def commits(found, commit):
        """The provenance with every commit in it replaced."""
        return {k: commit if k == "commit" else commits(v, commit) if isinstance(v, dict) else v
                for k, v in found.items()}

    clean = {name: commits(provenance(path), "c1 c2") for name, path in sources.items()}
    clean["lora"]["sources"] = ["corrupted", commits(clean["lora"]["sources"][1], "c1")]

    def said(name="lora", change=lambda found: None):
        for each, path in sources.items():
            found = json.loads(json.dumps(clean[each]))
            if each == name:
                change(found)
            (path / "provenance.json").write_text(json.dumps(found))
        return inside(capsys, "--config", file)

    assert said().code == 0
    assert json.loads((tmp_path / "bundle" / "reflect.json").read_text())["options"]["condition_offset"] == [0, 0]
    before = contents(tmp_path / "bundle")
    for name, where, change in (
            ("base", "provenance has", lambda found: found.update(commit="c1-dirty c2")),
            ("base", "provenance.vae has", lambda found: found["vae"].update(commit="c1-dirty")),
            ("lora", "provenance.sources has", lambda found: found["sources"][1].update(commit="c1-dirty")),
            ("lora", "provenance.base.vae has", lambda found: found["base"]["vae"].update(commit="c1-dirty"))):
        error = said(name, change).error
        assert f"{sources[name]}: {where} a commit that ends with -dirty" in error and "data.allow_dirty: true" in error
        assert contents(tmp_path / "bundle") == before
    assert inside(capsys, "--config", file, "--set", "data.allow_dirty=true").code == 0


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
    shutil.copytree(folder / "base" / "result", tmp_path / "out")  # a model that was not bundled, as FLUX.1-dev
    before = contents(tmp_path / "out")
    assert "is in the way" in inside(capsys, "--config", file).error and contents(tmp_path / "out") == before
    shutil.rmtree(tmp_path / "out")
    shutil.copytree(folder / "bundle", tmp_path / "out")
    before = contents(tmp_path / "out")
    assert "most_megabytes" in inside(capsys, "--config", file, "--set", "model.most_megabytes=0.01").error
    assert "condition_sise" in inside(capsys, "--config", file, "--set", "data.options.condition_sise=64").error
    assert "no provenance.json" in inside(capsys, "--config", file, "--set", f"model.lora={folder}/bundle/lora").error
    assert contents(tmp_path / "out") == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle.yaml", "out"]
