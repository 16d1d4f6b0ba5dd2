"""Reflect-DiT checkpoints on disk, in every layout that they may be published in, whole and damaged."""

import json
from pathlib import Path

import pytest
import torch
from check_golden import read_golden
from safetensors.torch import save_file

from reflect_core.generators.reflect_dit.checkpoint import STEM, build, load
from reflect_core.types import UserError

GOLDEN = Path(__file__).parent / "golden" / "reflect_dit_transformer.safetensors"


@pytest.fixture(scope="module")
def golden():
    metadata, weights, _, _ = read_golden(GOLDEN)
    return metadata["config"], weights


def write(folder, golden, suffix, shards):
    config, weights = golden
    (folder / "config.json").write_text(json.dumps({**config, "_class_name": "SanaTransformer2DModelWithContext"}))
    save = save_file if suffix == ".safetensors" else torch.save
    if shards == 1:
        save(weights, folder / f"{STEM}{suffix}")
        return folder
    names, where = sorted(weights), {}
    for k in range(shards):
        file = f"{STEM}-{k + 1:05}-of-{shards:05}{suffix}"
        part = {name: weights[name] for name in names[k::shards]}
        save(part, folder / file)
        where |= dict.fromkeys(part, file)
    (folder / f"{STEM}{suffix}.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_every_layout_gives_the_same_model(tmp_path, golden, suffix, shards):
    made = load(write(tmp_path, golden, suffix, shards))
    for part, expected in zip(made, build(*golden)):
        assert all(torch.equal(part.state_dict()[name], tensor) for name, tensor in expected.state_dict().items())
        assert not any(parameter.requires_grad or parameter.is_meta for parameter in part.parameters())


def test_safetensors_are_read_where_a_bin_lies_beside_them(tmp_path, golden):
    (write(tmp_path, golden, ".safetensors", 1) / f"{STEM}.bin").write_bytes(b"no weights at all")
    assert load(tmp_path)


def test_another_dtype(tmp_path, golden):
    transformer, context = load(write(tmp_path, golden, ".safetensors", 1), torch.bfloat16)
    assert {p.dtype for part in (transformer, context) for p in part.parameters()} == {torch.bfloat16}


class Code:
    def __reduce__(self):
        return (Path.touch, (Path("harm"),))


def test_a_bin_with_code_is_refused_and_nothing_runs(tmp_path, golden, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write(tmp_path, golden, ".bin", 1)
    torch.save({"proj_out.bias": Code()}, folder / f"{STEM}.bin")
    with pytest.raises(UserError, match="cannot be read as weights alone"):
        load(folder)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("harm, said", [
    (lambda f: (f / "config.json").unlink(), "config.json: no such file"),
    (lambda f: (f / "config.json").write_text("{}"), "plain SANA"),
    (lambda f: (f / f"{STEM}.safetensors").unlink(), "has no weights"),
    (lambda f: (f / f"{STEM}.safetensors").write_bytes(b"x" * 100), "not a whole safetensors file"),
    (lambda f: (f / f"{STEM}.safetensors.index.json").write_text('{"weight_map": {"a": "../b.safetensors"}}'),
     "weight_map"),
    (lambda f: save_file({"a": torch.zeros(1)}, f / f"{STEM}.safetensors"), "a is of the shape"),
])
def test_what_is_damaged_is_named(tmp_path, golden, harm, said):
    folder = write(tmp_path, golden, ".safetensors", 1)
    harm(folder)
    with pytest.raises(UserError, match=said):
        load(folder)
