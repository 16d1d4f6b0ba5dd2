"""Bad settings: one clear line, exit code 2, no traceback, and nothing on disk is harmed."""

import json
import re
import shutil

import pytest
import yaml
from command import contents, write_tiny_model
from tiny_training import ROOT, inside, train, write_config

from reflect_core.types import UserError
from trainer.checkpoint import FREE
from trainer.config import _override, filled_config, load_config, same_settings
from trainer.settings import SECTIONS, Source

CONFIGS = sorted((ROOT / "trainer" / "configs").glob("*.yaml"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny", lora=False)


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_config_of_the_pack_is_right(file):
    config = load_config(file)
    model, data = config.sections()
    assert (type(model), type(data)) == SECTIONS[config.task]


@pytest.mark.parametrize("task, settings, said", [
    ("vae", ["stepz=3"], "unknown key stepz; did you mean steps?"),
    ("vae", ["zzz=3"], "unknown key zzz; expected some of accumulate, batch,"),
    ("vae", ["lr=1e-3"], "lr is '1e-3'; expected a number (YAML reads 1e-3 as text: write 1.0e-3)"),
    ("vae", ["lr=-1.0"], "lr is -1.0; expected at least 0"),
    ("vae", ["lr=.nan"], "lr is nan"),
    ("vae", ["steps=many"], "steps is 'many'; expected a whole number"),
    ("vae", ["steps=2.5"], "steps is 2.5; expected a whole number"),
    ("vae", ["steps=true"], "steps is True; expected a whole number"),
    ("vae", ["steps=0"], "steps is 0; expected at least 1"),
    ("vae", ["compile=perhaps"], "compile is 'perhaps'; expected true or false"),
    ("vae", ["betas=[0.9]"], "betas is [0.9]; expected two numbers"),
    ("vae", ["betas=[0.9, no]"], "betas is [0.9, False]; expected a list, each a number"),
    ("vae", ["ema=1"], "ema is 1; expected between 0 and 0.99999"),
    ("vae", ["optimizer=sgd"], "optimizer is 'sgd'; expected adamw or muon"),
    ("vae", ["precision=fp16"], "precision is 'fp16'; expected bf16 or fp32"),
    ("vae", ["task=vea"], "task is 'vea'; expected one of vae, text, base, harvest, corrector, bundle"),
    ("vae", ["out="], "out is None; expected text"),
    ("vae", ["out=''"], "out is empty"),
    ("vae", ["model="], "model is None; expected `key: value` lines below it"),
    ("vae", ["model.channel=[8, 8]"], "unknown key model.channel; did you mean channels?"),
    ("vae", ["model.channels=[8, 12]"], "model.channels is [8, 12]; expected multiples of 8"),
    ("vae", ["data.pictures=0"], "data.pictures is 0; expected at least 1"),
    ("vae", ["data.pictures.more=0"], "'pictures' is a plain value and has nothing below it"),
    ("vae", ["steps"], "expected KEY=VALUE"),
    ("vae", ["data=[1"], "the value is not valid YAML"),
    ("base", ["data={}"], "the key data.bank is missing; expected a whole number"),
    ("base", ["data.tasks.posing=1"], "data.tasks: there is no task 'posing'"),
    ("base", ["data.tasks.position=-1"], "data.tasks.position is -1"),
    ("base", ["model={}"], "the key model.vae is missing; expected text"),
    ("base", ["model.vae=3"], "model.vae is 3; expected text"),
    ("harvest", ["model={text_length: 8}"], "the key model.base is missing"),
    ("corrector", ["data={}"], "the key data.sources is missing"),
    ("corrector", ["data.sources=[]"], "data.sources is empty"),
    ("corrector", ["data.sources=[5]"], "data.sources is [5]"),
    ("corrector", ["data.sources=[{kind: web}]"], "data.sources.0.kind is 'web'; expected folder or corrupted"),
    ("corrector", ["data.sources=[{kind: folder}]"], "the key data.sources.0.path is missing"),
    ("corrector", ["data.sources=[{kind: corrupted}]"], "the key data.sources.0.count is missing"),
    ("corrector", ["data.sources=[{kind: corrupted, cuont: 3}]"], "unknown key data.sources.0.cuont; did you mean"),
    ("corrector", ["data.sources.2.count=3"], "'2' is no place in a list of 2; expected a whole number from 0 to"),
    ("corrector", ["data.sources.first.count=3"], "'first' is no place in a list of 2"),
    ("corrector", ["data.sources.-1.count=3"], "'-1' is no place in a list of 2"),
    ("corrector", ["data.sources.0.count.x=3"], "'count' is a plain value and has nothing below it"),
    ("corrector", ["data.sources.0.count=0"], "data.sources.0.count is 0; expected at least 1"),
    ("corrector", ["data.eval={kind: folder}"], "the key data.eval.path is missing"),
    ("corrector", ["model.drop_text=1.5"], "model.drop_text is 1.5; expected a share from 0 to 1"),
    ("corrector", ["model.weights=fp8"], "model.weights is 'fp8'; expected fp32 or bf16"),
    ("bundle", ["model={}"], "the key model.base is missing"),
    ("bundle", ["data.default={}"], "unknown key data.default; did you mean defaults?"),
])
def test_settings_are_refused_before_anything_is_touched(task, settings, said, tmp_path, capsys):
    file = write_config(tmp_path, task)
    words = [word for item in settings for word in ("--set", item)]
    error = inside(capsys, "--config", file, *words).error
    assert said in error
    assert list(contents(tmp_path)) == [f"{task}.yaml"]


@pytest.mark.parametrize("text, said", [
    ("name: [", "is not valid YAML"), ("just words", "holds str; expected `key: value` lines"),
    ("", "holds NoneType"), ("task: vae\nout: x\n", "the key name is missing"),
    ("name: \xe9".encode("latin-1"), "is not valid YAML"),
    ("{name: a, task: vae, out: x, 3: 4}", "unknown key 3"),
])
def test_files_that_are_no_config(text, said, tmp_path, capsys):
    file = tmp_path / "bad.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert said in inside(capsys, "--config", file).error


def test_arguments(tmp_path, capsys):
    assert "required: --config" in inside(capsys).error
    assert "unrecognized arguments: --steps 3" in inside(capsys, "--config", "x.yaml", "--steps", "3").error
    missing = inside(capsys, "--config", tmp_path / "none.yaml").error
    assert "cannot read the config" in missing and "trainer/configs/" in missing


def test_a_typing_mistake_is_told_before_torch_is_loaded(tmp_path):
    """As a process: one line on stderr and nothing on stdout."""
    done = train("--config", write_config(tmp_path, "base"), "--set", "model.head=3")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines() == [f"error: {tmp_path}/base.yaml: unknown key model.head; did you mean heads?"]


@pytest.mark.parametrize("below", ["file/run", "/proc/none/run"])
def test_a_folder_that_cannot_be_written(below, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    error = inside(capsys, "--config", write_config(tmp_path, "vae"), "--set", f"out={tmp_path / below}").error
    assert "cannot write to" in error and "Choose another `out`" in error
    assert (tmp_path / "file").read_text() == "mine"


def test_a_device_that_is_not_there(tmp_path, capsys):
    error = inside(capsys, "--config", write_config(tmp_path, "vae"), "--set", "device=warp").error
    assert "device is 'warp', which cannot be used here" in error


@pytest.mark.parametrize("task, key", [("base", "vae"), ("base", "text"), ("harvest", "base"), ("corrector", "base"),
                                       ("bundle", "base"), ("sana_vision", "text"), ("sana_base", "vae"),
                                       ("reflect", "base")])
def test_a_model_that_is_not_there(task, key, model, tmp_path, capsys):
    data = [{"kind": "corrupted", "count": 2}]
    settings = ["--set", f"data.sources={json.dumps(data)}"] if task in ("corrector", "reflect") else []
    settings += ["--set", f"model.vae={model / 'vae'}"] if task == "base" else []
    error = inside(capsys, "--config", write_config(tmp_path, task), *settings,
                   "--set", f"model.{key}={tmp_path / 'nothing'}").error
    assert str(tmp_path / "nothing") in error and any(
        said in error for said in ("no such folder", "no such file", "neither a bundled model nor a folder"))


def test_a_model_that_is_cut_short(model, tmp_path, capsys):
    folder = shutil.copytree(model, tmp_path / "cut")
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    error = inside(capsys, "--config", write_config(tmp_path, "harvest"), "--set", f"model.base={folder}").error
    assert "diffusion_pytorch_model.safetensors" in error and "not a whole safetensors file" in error


def test_sizes_that_do_not_fit_the_model(model, tmp_path, capsys):
    file = write_config(tmp_path, "corrector", model={"base": str(model), "text_length": 12},
                        data={"sources": [{"kind": "corrupted", "count": 2}]})
    for key, expected in (("size", "64 where the shapes world"), ("condition_size", "a multiple of 8")):
        assert f"model.{key} is 60; expected {expected}" in inside(
            capsys, "--config", file, "--set", f"model.{key}=60").error


def test_a_lora_to_start_from_that_is_for_another_model(model, tmp_path, capsys):
    from tiny_flux import tiny_lora, tiny_transformer

    tiny_lora(tiny_transformer(num_attention_heads=3)).save(tmp_path / "lora")
    file = write_config(tmp_path, "corrector", model={"base": str(model), "text_length": 12,
                                                      "lora": str(tmp_path / "lora")},
                        data={"sources": [{"kind": "corrupted", "count": 2}]})
    assert "the LoRA was made for another architecture" in inside(capsys, "--config", file).error


def test_a_config_can_be_overridden_in_every_depth(tmp_path):
    file = write_config(tmp_path, "corrector", betas=[0.9, 0.99])
    config = load_config(file, ["steps=9", "model.rank=2", "data.eval.kind=corrupted", "data.eval.count=3",
                                "device=cuda", "data.sources.0.count=5", "data.sources.1={kind: folder, path: mine}",
                                "data.sources.1.repeat=4", "data.sources.0.tasks.position=2", "betas.1=0.5"])
    model, data = config.sections()
    assert (config.steps, model.rank, data.parsed_eval().count, config.device) == (9, 2, 3, "cuda")
    assert data.parsed() == [Source("corrupted", count=5, tasks={"position": 2}), Source("folder", "mine", repeat=4)]
    assert config.betas == [0.9, 0.5]
    assert yaml.safe_load(file.read_text())["steps"] == 6


def test_defaults_are_filled_in_below_model_and_data_too(tmp_path):
    full = filled_config(load_config(write_config(tmp_path, "corrector")).to_json())
    assert full["lr"] == 1e-3 and full["model"]["rank"] == 4 and full["model"]["drop_text"] == 0.1
    assert full["data"]["grid"] == 8 and full["data"]["eval"] is None
    assert full["data"]["sources"][0] == {"kind": "corrupted", "path": "", "count": 12, "repeat": 1, "tasks": None,
                                          "tries": 1}
    assert filled_config({"task": "vae", "model": {"gone": 1}, "data": {}})["model"]["gone"] == 1


@pytest.mark.parametrize("change, named", [
    *((free, None) for free in (
        "steps=99", "name=other", "device=cuda", "compile=true", "model.checkpointing=true", "model.sample_steps=5",
        "model.sample_guidance=1.5", "data.grid=2", "data.sample_prompts=3", "data.eval={kind: corrupted, count: 2}",
        "model.base=elsewhere", "data.sources.1.path=elsewhere", "model.drop_text=0.1", "data.sources.0.repeat=1")),
    ("lr=0.5", "lr = 0.001, the config says 0.5"), ("model.rank=5", "model.rank = 4, the config says 5"),
    ("model.text_length=9", "model.text_length = 24"), ("model.lora=x", "model.lora = None"),
    ("data.held_out=3", "data.held_out = 8"), ("data.sources.0.repeat=2", "data.sources.0.repeat = 1"),
    ("data.sources.1.kind=corrupted", "data.sources.1"), ("data.sources.1.repeat=1", "data.sources.1.repeat = 2"),
    ("data.sources=[{kind: corrupted, count: 12}]", "data.sources.1.kind = 'folder', the config says None"),
    ("task=base", "task = 'corrector', the config says 'base'"),
])
def test_what_may_change_when_a_run_goes_on(change, named, tmp_path):
    was = load_config(write_config(tmp_path, "corrector")).to_json()
    raw = yaml.safe_load((tmp_path / "corrector.yaml").read_text())
    _override(raw, change)
    now = {**was, **raw}
    if named is None:
        same_settings(was, now, FREE, "it")
    else:
        with pytest.raises(UserError, match=re.escape(f"it was written with {named}")):
            same_settings(was, now, FREE, "it")


def test_a_checkpoint_of_an_older_trainer_lacks_keys_that_there_are_now(tmp_path):
    """They had what is now the default; one that there is no more is named."""
    now = load_config(write_config(tmp_path, "corrector")).to_json()
    was = {**now, "model": dict(now["model"])}
    del was["model"]["sample_steps"], was["accumulate"]
    same_settings(was, now, FREE, "it")
    with pytest.raises(UserError, match="it was written with model.gone = 1, the config says None"):
        same_settings({**now, "model": {**now["model"], "gone": 1}}, now, FREE, "it")
