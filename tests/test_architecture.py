"""Files of another model, damaged files and pickles: one line each with the cure, before any weight is read."""

import json
import re

import pytest
import torch
from flux_files import component_tensors, load
from safetensors.torch import load_file, save_file

from reflect_core.generators.flux_corrector.pipeline import FluxCorrector
from reflect_core.generators.flux_corrector.single_files import file_parts
from reflect_core.generators.flux_corrector.sources import find_sources
from reflect_core.presets.choice import ModelChoice
from reflect_core.types import UserError
from reflect_core.weight_file import WeightFile

FLUX_2 = ["img_in", "txt_in", "double_stream_modulation_img.lin", "double_blocks.0.img_attn.qkv",
          "single_stream_modulation.lin", "single_blocks.0.linear1"]
OTHERS = {
    "FLUX.2": FLUX_2, "of Chroma": ["img_in", "double_blocks.0.img_attn.qkv", "distilled_guidance_layer.in_proj"],
    "SDXL": ["model.diffusion_model.input_blocks.0.0", "model.diffusion_model.label_emb.0.0",
             "first_stage_model.decoder.conv_in", "conditioner.embedders.0.transformer.text_model.final_layer_norm"],
    "of the Stable Diffusion 1, 2 or SDXL": ["down_blocks.0.resnets.0.conv1", "time_embedding.linear_1"],
    "Stable Diffusion 3": ["model.diffusion_model.joint_blocks.0.x_block.attn.qkv", "x_embedder.proj"],
    "of Wan": ["patch_embedding", "blocks.0.self_attn.q", "blocks.0.cross_attn.k"],
    "Qwen-Image": ["transformer_blocks.0.img_mod.1", "transformer_blocks.0.attn.add_q_proj"],
    "SANA": ["caption_projection.linear_1", "transformer_blocks.0.attn2.to_q"],
    "text encoder of another model": ["model.layers.0.self_attn.q_proj", "model.embed_tokens"],
    "of another model": ["blk.0.attn_q", "token_embd"],
    "a LoRA": ["transformer.transformer_blocks.0.attn.to_q.lora_A"],
    "is a LoRA": ["diffusion_model.double_stream_modulation_img.lin.lora_A"],
    "LoRA; expected": ["lycoris_double_blocks_0_img_attn_qkv.lokr_w1"],
    "a ControlNet": ["controlnet_blocks.0", "x_embedder", "transformer_blocks.0.attn.add_q_proj"],
    "double_blocks": ["something.else"]}
"""What is said -> layers that such a file has, by their published names."""


@pytest.mark.parametrize("said", OTHERS)
def test_another_architecture(tmp_path, said):
    save_file({f"{layer}.weight": torch.zeros(4, 4) for layer in OTHERS[said]}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=f"{re.escape(said)}.*; expected.*; (try|there)|{re.escape(said)}.*; try"):
        file_parts(tmp_path / "model.safetensors")


def test_nunchaku_and_bitsandbytes_files_name_their_cure(tmp_path):
    for key, said in (("transformer_blocks.0.qkv_proj.qweight", "bf16, fp8 or GGUF"),
                      ("double_blocks.0.img_attn.qkv.weight.quant_state.bitsandbytes__nf4", "quantise=nf4")):
        save_file({key: torch.zeros(4, dtype=torch.uint8)}, tmp_path / "m.safetensors")
        with pytest.raises(UserError, match=said):
            file_parts(tmp_path / "m.safetensors")


def change(path, to, **changes):
    tensors = load_file(path)
    for key, new in changes.items():
        tensors[key.replace("__", ".")] = new
    save_file({key: t.contiguous() for key, t in tensors.items() if t is not None}, to)
    return to


def wider(files, name, key, times):
    tensor = load_file(files[name])[key]
    return {key: torch.cat([tensor] * times, dim=1)}


@pytest.mark.parametrize("name, change_of, said", [
    ("transformer", lambda t: {"img_in.weight": torch.cat([t["img_in.weight"]] * 6, 1)}, "Fill, Canny and Depth"),
    ("transformer", lambda t: {"img_in.weight": t["img_in.weight"].to(torch.int8)}, "ComfyUI's or another"),
    ("transformer", lambda t: {"double_blocks.1.img_attn.qkv.weight": None}, "has no transformer_blocks.1.attn.to_k"),
    ("transformer", lambda t: {"single_blocks.0.linear2.weight": t["single_blocks.0.linear2.weight"][:, :64]},
     r"single_blocks.0.linear2.weight makes .* \(64, 64\); expected \(64, 320\)"),
    ("vae", lambda t: {"quant_conv.weight": torch.zeros(8, 8, 1, 1)}, "autoencoder of another model.*ae.safetensors"),
    ("text_encoder_2", lambda t: {
        "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight": torch.zeros(32, 2)}, "UMT5"),
    ("text_encoder_2", lambda t: {"encoder.block.0.layer.1.DenseReluDense.wi_0.weight": None}, "older kind"),
    ("text_encoder", lambda t: {"text_model.encoder.layers.1.mlp.fc1.bias": None}, "lack.*layers.1.mlp.fc1.bias"),
    ("text_encoder_2", lambda t: {"encoder.final_layer_norm.weight": None}, "lack.*final_layer_norm"),
    ("vae", lambda t: {"decoder.mid.attn_1.q.weight": None}, r"vae|ae.safetensors")])
def test_near_relatives_and_files_that_lack_something(base, files, tmp_path, name, change_of, said):
    tensors = load_file(files[name])
    changed = {key: t for key, t in (tensors | change_of(tensors)).items() if t is not None}
    file = tmp_path / files[name].name
    save_file({key: t.contiguous() for key, t in changed.items()}, file)
    with pytest.raises(UserError, match=said):
        load(base, {**files, name: file})


@pytest.mark.parametrize("name, content, said", [
    ("m.ckpt", b"PK\x03\x04", "is a pickle.*safetensors"), ("m.pt", b"", "is a pickle"), ("m.bin", b"", "is a pickle"),
    ("m.safetensors", b"PK\x03\x04rest", "pickle by another name"), ("m.sft", b"\x80\x02rest", "pickle by another"),
    ("m.safetensors", b"<!DOCTYPE html><html>", "web page.*signing in"), ("m.safetensors", b"not one", "not a whole"),
    ("m.safetensors", b"", "is empty.*download it again"), ("m.gguf", b"", "is empty"),
    ("m.gguf", b"\x20\0\0\0\0\0\0\0{}", "not a GGUF file, whatever it is called"),
    ("m.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:12", "not the weights.*git lfs pull"),
    ("m.safetensors", None, "no such file")])
def test_what_is_no_safetensors_file(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        WeightFile(tmp_path / name)


def test_a_folder_and_a_link_to_nowhere_called_like_a_file(base, files, tmp_path):
    folder = tmp_path / "flux1-dev.safetensors"
    folder.mkdir()
    (tmp_path / "gone.safetensors").symlink_to(tmp_path / "nothing.safetensors")
    for name, said in ((folder.name, "is a folder"), ("gone.safetensors", "is a link to .*nothing.safetensors, where")):
        with pytest.raises(UserError, match=f"{name}: {said}.*; expected a .safetensors.*; try"):
            load(base, files, tmp_path / name)
        with pytest.raises(UserError, match=f"{name}: {said}"):
            ModelChoice(str(tmp_path / name))
    with pytest.raises(UserError, match="--part vae=.*flux1-dev.safetensors: is a folder, called like.*the file in it"):
        find_sources(base, {"vae": folder})


def test_a_whole_model_may_be_called_like_a_file(base, tmp_path):
    (tmp_path / "my.model.safetensors").symlink_to(base)
    assert FluxCorrector.from_folder(tmp_path / "my.model.safetensors").max_context == 1


@pytest.mark.parametrize("name", ["flux1 dev (final) [fp8].safetensors", "flux1*dev?.sft", "{a}%20b.safetensors"])
def test_names_with_blanks_and_brackets(base, files, tmp_path, name):
    folder = tmp_path / "my [models] (new)"
    folder.mkdir()
    file = folder / name
    file.symlink_to(files["transformer"])
    assert load(base, files, file).max_context == 1
    choice = ModelChoice(str(file), str(base / "lora"), parts={n: str(p) for n, p in files.items() if n == "vae"})
    assert choice.files("transformer") == [file] and choice.fingerprint()


def test_half_of_a_download_says_how_much_there_is_and_should_be(files, tmp_path):
    whole = files["transformer"].read_bytes()
    (tmp_path / "f.safetensors").write_bytes(whole[:len(whole) * 2 // 3])
    with pytest.raises(UserError, match=f"half of a download: it has {len(whole) * 2 // 3} bytes.*{len(whole)}"):
        WeightFile(tmp_path / "f.safetensors")


@pytest.mark.parametrize("name, shape", [("weight_scale_inv", (1, 2)), ("scale_weight", (2, 2)), ("weight_scale", (3,)),
                                         ("scales", (4,))])
def test_fp8_in_blocks_is_not_taken_for_plain_fp8(files, tmp_path, name, shape):
    tensors = load_file(files["transformer"])
    key = "double_blocks.0.img_attn.qkv.weight"
    tensors |= {key: tensors[key].to(torch.float8_e4m3fn), key.replace("weight", name): torch.ones(shape)}
    save_file(tensors, tmp_path / "f.safetensors")
    with pytest.raises(UserError, match=f"{key} is fp8 in blocks or by another program, with .*{name} of.*; expected"):
        file_parts(tmp_path / "f.safetensors")


@pytest.mark.parametrize("header", [[1], {"a": 3}, {"a": {"data_offsets": "x"}}, {"a": {}}])
def test_a_header_of_nonsense(tmp_path, header):
    text = json.dumps(header).encode()
    (tmp_path / "f.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"rest")
    with pytest.raises(UserError, match="not a whole safetensors file"):
        WeightFile(tmp_path / "f.safetensors")


def test_a_gguf_without_the_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    (tmp_path / "f.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    with pytest.raises(UserError, match="pip install gguf"):
        WeightFile(tmp_path / "f.gguf")


def test_an_empty_header_is_told_by_what_was_expected(tmp_path):
    save_file({}, tmp_path / "f.safetensors")
    with pytest.raises(UserError, match=r"holds no component of FLUX.1, but \(it is empty\)"):
        file_parts(tmp_path / "f.safetensors")


@pytest.mark.parametrize("keys, said", [
    (["transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj.lora_A.weight"], "FLUX.2"),
    (["unet.down_blocks.0.attentions.0.to_q.lora_A.weight"], "SDXL"), (["lora_unet_double_blocks_0.lora_down.weight",
     "lora_unet_double_blocks_0.alpha"], "Kohya"),
    (["diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight"], "names of FLUX's authors"),
    (["diffusion_model.blocks.0.self_attn.q.lora_A.weight"], "Wan")])
def test_a_lora_of_another_base_is_named(base, tmp_path, keys, said):
    from reflect_core.generators.flux_corrector.pipeline import FluxCorrector

    save_file({key: torch.zeros(4, 4) for key in keys}, tmp_path / "lora.safetensors")
    with pytest.raises(UserError, match=f"{said}.*try") as caught:
        FluxCorrector.from_folder(base, lora=tmp_path / "lora.safetensors")
    assert "\n" not in str(caught.value)


def test_every_component_is_told_from_its_names(base, files):
    assert {name: list(file_parts(path)) for name, path in files.items()} == {name: [name] for name in files}
    assert component_tensors(base)["vae"].keys() >= {
        "encoder.down.0.block.0.conv1.weight", "decoder.up.2.upsample.conv.weight",
        "decoder.mid.attn_1.proj_out.weight",
        "encoder.down.1.block.0.nin_shortcut.weight", "decoder.norm_out.weight"}
