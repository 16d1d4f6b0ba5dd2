"""FLUX's components from single files: the same pictures to the bit as from a folder."""

import pytest
import torch
from flux_files import (
    CHECKPOINT,
    FP8,
    SETTINGS,
    component_tensors,
    load,
    same,
    tokenizers,
    write_base,
    write_files,
)
from safetensors.torch import load_file, save_file

from reflect_core.generators.flux_corrector.architecture import PREFIXES
from reflect_core.generators.flux_corrector.original_names import pieces, shapes_of
from reflect_core.generators.flux_corrector.pipeline import FluxCorrector
from reflect_core.types import UserError

OPTIONS = SETTINGS["options"]


def test_files_draw_as_the_folder_does_to_the_bit(base, files):
    assert same(load(base, files), FluxCorrector.from_folder(base))


def test_every_component_has_the_folders_weights_and_config(base, files):
    mine, theirs = load(base, files), FluxCorrector.from_folder(base)
    for name, part in mine.parts.items():
        other = theirs.parts[name].state_dict()
        assert part.state_dict().keys() == other.keys()
        assert all(torch.equal(tensor, other[key]) for key, tensor in part.state_dict().items()), name
    assert mine.schedule_config["shift"] == 3.0 and mine.schedule_config["use_dynamic_shifting"]


def test_all_in_one_checkpoint(base, tmp_path):
    file = write_files(base, tmp_path, CHECKPOINT)["transformer"]
    made = FluxCorrector.from_folder(file, lora=base / "lora", parts=tokenizers(base), **OPTIONS)
    assert same(made, FluxCorrector.from_folder(base))


@pytest.mark.parametrize("prefix", PREFIXES["transformer"])
def test_prefixes(base, files, tmp_path, prefix):
    tensors = load_file(files["transformer"])
    assert "double_blocks.0.img_attn.qkv.weight" in tensors and "single_blocks.1.norm.key_norm.scale" in tensors
    save_file({prefix + key: tensor for key, tensor in tensors.items()}, tmp_path / "f.sft")
    assert same(load(base, files, tmp_path / "f.sft"), FluxCorrector.from_folder(base))


def test_a_transformer_file_in_diffusers_layout(base, files):
    assert same(load(base, files, base / "transformer" / "diffusion_pytorch_model.safetensors"),
                FluxCorrector.from_folder(base))


def test_one_part_of_a_folder_from_a_file(base, files, tmp_path):
    other = write_base(tmp_path / "other", seed=4)
    mixed = FluxCorrector.from_folder(base, parts={"transformer": write_files(other, tmp_path)["transformer"]})
    assert same(mixed, FluxCorrector.from_folder(base, parts={"transformer": other}))
    assert not same(mixed, FluxCorrector.from_folder(base))


def test_schnell_has_no_guidance_and_a_scheduler_of_its_own(tmp_path):
    base = write_base(tmp_path / "base", guidance_embeds=False)
    made = load(base, write_files(base, tmp_path))
    assert same(made, FluxCorrector.from_folder(base)) and not made.schedule_config["use_dynamic_shifting"]


def rounded(tensors, dtype=FP8):
    return {key: t.to(dtype) if t.ndim == 2 and "norm" not in key else t for key, t in tensors.items()}


@pytest.mark.parametrize("quantise", ["none", "fp8"])
def test_plain_fp8_draws_as_the_rounded_weights_do(base, files, tmp_path, quantise):
    eight = rounded(load_file(files["transformer"]))
    save_file(eight, tmp_path / "flux1-dev-fp8.safetensors")
    save_file({key: t.float() for key, t in eight.items()}, tmp_path / "rounded.safetensors")
    mine = load(base, files, tmp_path / "flux1-dev-fp8.safetensors", quantise=quantise)
    assert same(mine, load(base, files, tmp_path / "rounded.safetensors", quantise=quantise))
    held = mine.transformer.single_transformer_blocks[0].proj_out.weight.dtype
    assert held == (FP8 if quantise == "fp8" else torch.float32)


def scaled(tensors, name):
    """Each matrix in fp8 with its scale beside it, as ComfyUI's scaled files have it; and what it stands for."""
    made, meant = {"scaled_fp8": torch.zeros(2, dtype=FP8)}, {}
    for key, t in tensors.items():
        if t.ndim != 2 or "shared" in key or "bias" in key:
            made[key] = meant[key] = t
            continue
        scale = t.abs().max() / 448
        made[key] = (t / scale).to(FP8)
        made[key.removesuffix("weight") + name] = scale
        made[key.removesuffix("weight") + "scale_input"] = torch.ones(1)
        meant[key] = made[key].float() * scale
    return made, meant


@pytest.mark.parametrize("name", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("part", ["text_encoder_2", "transformer"])
def test_scaled_fp8_is_what_it_stands_for(base, files, tmp_path, part, name):
    made, meant = scaled(load_file(files[part]), name)
    save_file(made, tmp_path / "scaled.safetensors")
    save_file(meant, tmp_path / "meant.safetensors")
    a, b = (load(base, {**files, part: tmp_path / f"{n}.safetensors"}) for n in ("scaled", "meant"))
    assert same(a, b) and not same(a, load(base, files))


def test_a_scale_for_each_row_goes_with_its_row_when_a_matrix_is_taken_apart(base, files, tmp_path):
    tensors = load_file(files["transformer"])
    key = "double_blocks.0.img_attn.qkv.weight"
    rows = tensors[key].shape[0]
    scale = torch.linspace(0.001, 0.01, rows)
    made = {**tensors, key: (tensors[key] / scale[:, None]).to(FP8), key.replace("weight", "weight_scale"): scale}
    save_file(made, tmp_path / "rows.safetensors")
    transformer = load(base, files, tmp_path / "rows.safetensors").transformer
    meant = made[key].float() * scale[:, None]
    k = transformer.transformer_blocks[0].attn.to_k.weight
    assert torch.equal(k, meant[rows // 3:2 * rows // 3])


def test_the_names_agree_with_diffusers_own_conversion():
    """diffusers' is for a width of 3072 alone: two columns of it are enough to tell rows apart."""
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers as theirs

    width, file, count = 3072, {}, iter(range(10_000))

    def put(name, rows):
        for ending in ("weight", "bias"):
            file[f"{name}.{ending}"] = torch.arange(rows * 2).reshape(rows, 2) + next(count) * 100_000

    for name in ("time_in", "vector_in", "guidance_in"):
        put(f"{name}.in_layer", width)
        put(f"{name}.out_layer", width)
    for name, rows in (("img_in", width), ("txt_in", width), ("final_layer.linear", 64),
                       ("final_layer.adaLN_modulation.1", 2 * width), ("single_blocks.0.modulation.lin", 3 * width),
                       ("single_blocks.0.linear1", 7 * width), ("single_blocks.0.linear2", width)):
        put(name, rows)
    for s in ("img", "txt"):
        for name, rows in (("mod.lin", 6), ("attn.qkv", 3), ("attn.proj", 1), ("mlp.0", 4), ("mlp.2", 1)):
            put(f"double_blocks.0.{s}_{name}", rows * width)
        for n in ("query", "key"):
            file[f"double_blocks.0.{s}_attn.norm.{n}_norm.scale"] = torch.arange(128) + next(count) * 1000
    for n in ("query", "key"):
        file[f"single_blocks.0.norm.{n}_norm.scale"] = torch.arange(128) + next(count) * 1000
    shapes = {key: tuple(t.shape) for key, t in file.items()}
    found = pieces(shapes)
    mine = {name: file[p.key] if not p.rows else torch.cat([file[p.key][a:b] for a, b in p.rows])
            for name, p in found.items()}
    other = theirs(dict(file))
    assert mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)
    assert shapes_of(found, shapes) == {name: tuple(t.shape) for name, t in mine.items()}


def test_what_is_not_named_is_said_with_all_that_is_missing(base, files):
    with pytest.raises(UserError, match="holds transformer.*vae, text_encoder, text_encoder_2, tokenizer and tokeniz"):
        FluxCorrector.from_folder(files["transformer"])


@pytest.mark.parametrize("parts, said", [
    ({"vae": "text_encoder"}, "holds text_encoder; expected vae; try ae.safetensors"),
    ({"unet": "vae"}, "no such component; expected one of transformer"),
    ({"tokenizer": "vae"}, "no such folder"), ({"vae": "/no/such.safetensors"}, "no such file")])
def test_parts_that_are_something_else(base, files, parts, said):
    with pytest.raises(UserError, match=said):
        FluxCorrector.from_folder(base, parts={k: files.get(v, v) for k, v in parts.items()})


@pytest.mark.parametrize("part", ["vae", "text_encoder", "text_encoder_2"])
def test_a_part_of_another_size_is_told_before_weights_are_read(base, files, tmp_path, part):
    tensors = component_tensors(base)
    key, wider = {"vae": ("decoder.conv_in.weight", 1), "text_encoder": (None, 1), "text_encoder_2": (None, 1)}[part]
    tensors = {k: torch.cat([t, t], dim=min(wider, t.ndim - 1)) if key in (None, k) and t.ndim > 1 else t
               for k, t in tensors[part].items()}
    save_file({k: t.contiguous() for k, t in tensors.items()}, tmp_path / "wide.safetensors")
    with pytest.raises(UserError, match="expected parts of one model"):
        load(base, {**files, part: tmp_path / "wide.safetensors"})


def test_nobody_is_asked_for_anything(base, files, monkeypatch):
    import socket

    def refuse(*_, **__):
        raise AssertionError("a connection was tried")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert load(base, files).max_context == 1


def test_a_tokenizer_that_cuts_later_than_clip_can_read_is_told_where_to(base, files, tmp_path):
    """As the one that ComfyUI carries, which says 8192."""
    import json
    import shutil

    shutil.copytree(base / "tokenizer", tmp_path / "tokenizer")
    config = tmp_path / "tokenizer" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_max_length": 8192}))
    mine = FluxCorrector.from_folder(base, parts={"tokenizer": tmp_path / "tokenizer"})
    assert mine.texts.tokenizer.model_max_length == 12 and same(mine, FluxCorrector.from_folder(base))
