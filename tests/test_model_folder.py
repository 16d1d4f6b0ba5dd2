"""Model folders: found by name, checked file by file before loading, and the word tokenizer in them."""

import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from tiny_flux import tiny_lora, tiny_transformer, write_tiny_flux
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from reflect_core.generators.flux_corrector.folder import load_components
from reflect_core.generators.flux_corrector.pipeline import FluxCorrector
from reflect_core.model_files import check_model_folder
from reflect_core.presets import load
from reflect_core.presets.load import find_model, load_generator, preset_names, read_settings
from reflect_core.shapes.tokenizer import split_words, write_word_tokenizer
from reflect_core.types import UserError

PRESETS = Path(load.__file__).parent


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_tiny_flux(tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "model")


def refused(folder, *words):
    with pytest.raises(UserError) as error:
        FluxCorrector.from_folder(folder)
    for word in words:
        assert word in str(error.value)
    return str(error.value)


def test_find_model(whole, tmp_path, monkeypatch):
    assert find_model(whole) == whole
    with pytest.raises(UserError, match="neither a bundled model nor a folder"):
        find_model("no-such-model")
    with pytest.raises(UserError, match="model_index.json"):
        load_generator(tmp_path)


@pytest.mark.parametrize("name, parts, context", [
    ("shapes-flux", ("base", "base vae", "lora"), 1),
    ("shapes-sana-plain", ("base", "base vae", "base text"), 0),
    ("shapes-sana", ("base", "base vae", "base text", "vision", "vision text", "checkpoint", "checkpoint checkpoint"),
     3)])
def test_the_bundled_models(name, parts, context):
    """By their names, within their size, without pickles, and every weight says where it came from."""
    folder = find_model(name)
    assert folder == PRESETS / name and name in preset_names()
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 24 * 2**20
    assert {file.suffix for file in files} == {".safetensors", ".json"}
    told = json.loads((folder / "provenance.json").read_text())
    for path in parts:
        part = functools.reduce(dict.__getitem__, path.split(), told)
        assert {"config", "seed", "steps", "commit"} <= set(part) and part["config"]["data"]
        assert not part["commit"].endswith("-dirty")
    generator = load_generator(name)
    assert generator.max_context == context and generator.defaults["width"] == 64


def test_a_preset_name_wins_over_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes-flux").mkdir()
    assert find_model("shapes-flux") == PRESETS / "shapes-flux"
    assert find_model("./shapes-flux").resolve() == (tmp_path / "shapes-flux").resolve()


def test_load_generator_takes_options(whole):
    generator = load_generator(whole, max_batch=3)
    assert isinstance(generator, FluxCorrector) and generator.options.max_batch == 3
    assert generator.defaults == {"width": 32, "height": 32, "steps": 3, "guidance": 3.5}
    with pytest.raises(UserError, match="no option 'max_batches'"):
        load_generator(whole, max_batches=3)


def test_nothing_heavy_at_import():
    code = ("import sys, reflect_core.presets.load, reflect_core.presets, reflect_core.generators;"
            "print([m for m in ('torch', 'diffusers', 'transformers') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("file", [
    "model_index.json", "transformer/config.json", "transformer/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors", "text_encoder_2/config.json",
    "tokenizer/tokenizer.json", "tokenizer_2/tokenizer_config.json", "scheduler/scheduler_config.json"])
def test_a_missing_file_is_named(folder, file):
    (folder / file).unlink()
    name = file.rsplit("/", 1)[0] if file.endswith(".safetensors") else file
    assert "\n" not in refused(folder, name, "expected" if file.endswith("safetensors") else "no such file")


@pytest.mark.parametrize("file", ["transformer/diffusion_pytorch_model.safetensors",
                                  "text_encoder/model.safetensors",
                                  "lora/pytorch_lora_weights.safetensors"])
def test_a_file_cut_short_is_named(folder, file):
    data = (folder / file).read_bytes()
    (folder / file).write_bytes(data[:len(data) // 2])
    refused(folder, file, "not a whole safetensors file")
    (folder / file).write_bytes(b"")
    refused(folder, file, "not a whole safetensors file", "0 bytes")


@pytest.mark.parametrize("file", ["text_encoder/pytorch_model.bin", "vae/old.pt", "model.ckpt"])
def test_a_pickle_is_refused_before_anything_is_read(folder, file):
    torch.save({"weight": torch.zeros(1)}, folder / file)
    refused(folder, file, "pickle")


def test_shards_are_checked(folder):
    part = folder / "transformer"
    one = part / "diffusion_pytorch_model.safetensors"
    tensors = load_file(str(one))
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, keys in shards.items():
        save_file({k: tensors[k] for k in keys}, str(part / file), metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {k: f for f, keys in shards.items() for k in keys}}
    (part / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    one.unlink()
    assert load_components(folder)["transformer"].state_dict().keys() == tensors.keys()
    (part / "b.safetensors").unlink()
    refused(folder, "transformer/b.safetensors", "no such file")


def test_a_weight_that_is_missing_or_of_another_shape(folder):
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(str(file))
    bias = tensors.pop("x_embedder.bias")
    save_file(tensors, str(file), metadata={"format": "pt"})
    refused(folder, "transformer", "x_embedder.bias")
    save_file(tensors | {"x_embedder.bias": bias[1:].clone()}, str(file), metadata={"format": "pt"})
    refused(folder, "transformer", "x_embedder.bias")


def test_a_shard_index_that_is_wrong(folder):
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    for name in (3, "../vae/diffusion_pytorch_model.safetensors"):
        file.write_text(json.dumps({"weight_map": {"x_embedder.bias": name}}))
        refused(folder, file.name, "x_embedder.bias", repr(name))


def test_weights_that_the_config_does_not_describe(folder):
    """Two of three blocks would load without a word, and draw something else."""
    for part, key in (("transformer", "num_layers"), ("vae", "layers_per_block")):
        file = folder / part / "config.json"
        config = json.loads(file.read_text())
        file.write_text(json.dumps(config | {key: config[key] - 1 if key == "num_layers" else 0}))
        if part == "transformer":
            (folder / "lora" / "pytorch_lora_weights.safetensors").unlink()
        refused(folder, str(folder / part), "does not describe")
        file.write_text(json.dumps(config))


def test_no_progress_bar_while_shards_load(folder, capfd):
    from diffusers.utils import logging

    part = folder / "transformer"
    one = part / "diffusion_pytorch_model.safetensors"
    names = sorted(load_file(str(one)))
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "a.safetensors")}
    one.rename(part / "a.safetensors")
    (part / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    logging.enable_progress_bar()
    load_components(folder)
    assert logging.is_progress_bar_enabled()
    assert "Loading" not in capfd.readouterr().err


@pytest.mark.parametrize("name, kind, files, enough", [
    ("tokenizer_2", "T5TokenizerFast", {"vocab.json": "{}"}, False),
    ("tokenizer_2", "T5Tokenizer", {"spiece.model": "x"}, True),
    ("tokenizer", "CLIPTokenizer", {"vocab.json": "{}"}, False),
    ("tokenizer", "CLIPTokenizer", {"vocab.json": "{}", "merges.txt": "x"}, True),
    ("tokenizer", "PreTrainedTokenizerFast", {"vocab.json": "{}", "merges.txt": "x"}, False)])
def test_a_tokenizer_needs_the_files_of_its_class(folder, name, kind, files, enough):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {name: ["transformers", kind]}))
    (folder / name / "tokenizer.json").unlink()
    for file, text in files.items():
        (folder / name / file).write_text(text)
    if enough:
        check_model_folder(folder, [name])
    else:
        refused(folder, f"{name}/tokenizer.json", "no such file", kind)


def test_what_does_not_fit_is_said_before_weights_are_read(folder, monkeypatch):
    def load(*args, **kwargs):
        raise AssertionError("weights were read")

    monkeypatch.setattr(FluxTransformer2DModel, "from_pretrained", load)
    monkeypatch.setattr(AutoencoderKL, "from_pretrained", load)
    other = tiny_lora(tiny_transformer(num_layers=1))
    for change, word in (({"lora": other}, "shallower"), ({"lora": other.save(folder / "other")}, "shallower"),
                         ({"condition_size": 20}, "multiple of 8"), ({"lora": folder / "none"}, "no such file")):
        with pytest.raises(UserError, match=word):
            FluxCorrector.from_folder(folder, **change)
    (folder / "transformer" / "config.json").write_text('{"num_layers": "many"}')
    refused(folder, "transformer/config.json", "cannot be loaded")


def test_indexes_that_are_wrong(folder):
    file = folder / "model_index.json"
    index = json.loads(file.read_text())
    file.write_text("{")
    refused(folder, "not readable JSON")
    file.write_text(json.dumps(index | {"text_encoder_2": ["transformers", "GemmaModel"]}))
    refused(folder, "text_encoder_2 is a GemmaModel")
    file.write_text(json.dumps(index | {"transformer": ["my_package", "Model"]}))
    refused(folder, "my_package")
    file.write_text(json.dumps(index | {"text_encoder": ["diffusers", "CLIPTextModel"]}))
    refused(folder, "text_encoder is a CLIPTextModel of diffusers")
    for kind in ("OtherPipeline", "PixArtAlphaPipeline", ["x"], None):
        file.write_text(json.dumps(index | {"_class_name": kind}))
        with pytest.raises(UserError, match="_class_name is .* expected one of FluxPipeline, SanaPipeline, ") as error:
            load_generator(folder)
        assert repr(kind) in str(error.value)


def test_settings(folder):
    file = folder / "reflect.json"
    file.unlink()
    assert read_settings(folder) == ({}, {})
    assert FluxCorrector.from_folder(folder).defaults["steps"] == 28
    file.write_text('{"defaults": {"stepz": 3}}')
    refused(folder, "reflect.json", "stepz")
    for text, word in (('{"defaults": 3}', "defaults is 3"), ('{"options": 3}', "options is 3"), ("[1]", "a list"),
                       ('{"defaults": [1]}', "defaults is"), ('{"defaults": {"steps": "many"}}', "steps 'many'"),
                       ('{"defaults": {"width": true}}', "width True"), ('{"defaults": {"steps": 0}}', "steps 0"),
                       ('{"defaults": {"guidance": NaN}}', "guidance nan")):
        file.write_text(text)
        refused(folder, "reflect.json", word)
    file.write_text('{"options": {"condition_sise": 3}}')
    refused(folder, "condition_sise")
    file.write_text('{"options": {"condition_size": 20}}')
    refused(folder, "multiple of 8")


def test_clip_is_written_under_the_published_names(whole):
    names = load_file(str(whole / "text_encoder" / "model.safetensors"))
    assert all(name.startswith("text_model.") for name in names)


@pytest.mark.parametrize("kind_of_load", [PreTrainedTokenizerFast, AutoTokenizer])
def test_word_tokenizer(tmp_path, kind_of_load):
    words = ["a Red circle", "top-left"]
    write_word_tokenizer(tmp_path / "clip", words, "clip", max_length=9)
    vocab = write_word_tokenizer(tmp_path / "t5", words, "t5")
    text = "A red circle, top-left. [Reflexion]: zebra"
    expected = ["a", "red", "circle", ",", "top-left", ".", "[reflexion]", ":", "zebra"]
    assert split_words(text) == expected
    clip, t5 = (kind_of_load.from_pretrained(tmp_path / kind, local_files_only=True) for kind in ("clip", "t5"))
    ids = t5(text, padding="max_length", max_length=12).input_ids
    assert t5.convert_ids_to_tokens(ids) == expected[:-1] + ["<unk>", "</s>", "<pad>", "<pad>"]
    assert max(vocab.values()) == len(vocab) - 1
    assert clip.model_max_length == 9 and (clip.bos_token_id, clip.eos_token_id, clip.pad_token_id) == (2, 3,
                                                                                                        0)
    ids = clip(text, padding="max_length", max_length=9, truncation=True).input_ids
    assert clip.convert_ids_to_tokens(ids) == ["<|startoftext|>", *expected[:7], "<|endoftext|>"]
    with pytest.raises(ValueError, match="expected one of clip, t5, gemma"):
        write_word_tokenizer(tmp_path, words, "bert")
