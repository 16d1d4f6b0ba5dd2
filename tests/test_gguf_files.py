"""FLUX in GGUF: the numbers that its packed matrices stand for, and the errors of a file that is cut short."""

import sys

import diffusers
import pytest
import torch
from flux_files import component_tensors, load, packed_kind, request, same, tokenizers, write_gguf

from reflect_core.generators.flux_corrector.single_files import file_parts
from reflect_core.generators.flux_corrector.sources import find_sources
from reflect_core.types import UserError
from reflect_core.weight_file import WeightFile

gguf = pytest.importorskip("gguf")
theirs = pytest.importorskip("diffusers.quantizers.gguf.utils")
packed_here = pytest.mark.skipif(tuple(map(int, diffusers.__version__.split(".")[:2])) < (0, 35),
                                 reason="diffusers before 0.35 reads no transformer in GGUF that it has not converted")


def save(tensors, path):
    from safetensors.torch import save_file

    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    return path


@packed_here
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
def test_a_transformer_draws_as_the_unpacked_weights_do(base, files, tmp_path, kind):
    meant = write_gguf(tmp_path / "flux1-dev.gguf", component_tensors(base)["transformer"], kind)
    mine = load(base, files, tmp_path / "flux1-dev.gguf")
    if kind.startswith("Q"):  # diffusers unpacks to fp16 before it casts to the model's dtype
        meant = {key: t.half().float() if packed_kind(key, t, kind) == kind else t for key, t in meant.items()}
    other = load(base, files, save(meant, tmp_path / "meant.safetensors"))
    assert same(mine, other)
    held = mine.transformer.single_transformer_blocks[0].proj_mlp.weight
    packed = kind.startswith("Q")
    assert (held.dtype == torch.uint8) == packed, "kept as packed"
    assert mine.transformer.dtype == torch.float32
    assert packed or torch.equal(held, other.transformer.single_transformer_blocks[0].proj_mlp.weight)
    assert same(mine, load(base, files)) == (kind == "F32")


@packed_here
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_it_computes_in_the_dtype_of_the_model(base, files, tmp_path, dtype):
    write_gguf(tmp_path / "flux1-dev.gguf", component_tensors(base)["transformer"], "Q8_0")
    mine = load(base, files, tmp_path / "flux1-dev.gguf", dtype=dtype)
    assert mine.transformer.dtype == dtype
    assert mine.draw_latents([request()])[0].dtype == dtype


LLAMA = {"shared": "token_embd", "encoder.final_layer_norm": "enc.output_norm"}
LAYERS = {"0.SelfAttention.q": "attn_q", "0.SelfAttention.k": "attn_k", "0.SelfAttention.v": "attn_v",
          "0.SelfAttention.o": "attn_o", "0.SelfAttention.relative_attention_bias": "attn_rel_b",
          "0.layer_norm": "attn_norm", "1.DenseReluDense.wi_0": "ffn_gate", "1.DenseReluDense.wi_1": "ffn_up",
          "1.DenseReluDense.wo": "ffn_down", "1.layer_norm": "ffn_norm"}


def llama(key):
    stem = key.removesuffix(".weight")
    if stem in LLAMA:
        return f"{LLAMA[stem]}.weight"
    _, _, number, _, layer = stem.split(".", 4)
    return f"enc.blk.{number}.{LAYERS[layer]}.weight"


@pytest.mark.parametrize("kind", ["F16", "Q8_0"])
def test_a_t5_is_unpacked(base, files, tmp_path, kind):
    tensors = component_tensors(base)["text_encoder_2"]
    meant = write_gguf(tmp_path / "t5.gguf", {llama(key): t for key, t in tensors.items()}, kind, "t5encoder")
    meant = save({key: meant[llama(key)] for key in tensors}, tmp_path / "meant.safetensors")
    assert same(load(base, {**files, "text_encoder_2": tmp_path / "t5.gguf"}),
                load(base, {**files, "text_encoder_2": meant}))


@pytest.mark.parametrize("left", [0.2, 0.6, 0.999])
def test_half_of_a_download(base, tmp_path, left):
    path = tmp_path / "flux1-dev.gguf"
    write_gguf(path, component_tensors(base)["transformer"], "Q8_0")
    path.write_bytes(path.read_bytes()[:int(path.stat().st_size * left)])
    with pytest.raises(UserError, match="GGUF file|half of a download"):
        WeightFile(path)


@pytest.mark.parametrize("lacks", [("gguf",), ("accelerate",), ("gguf", "accelerate")])
def test_what_is_not_installed_is_named_before_weights_are_read(base, files, tmp_path, lacks, monkeypatch):
    write_gguf(tmp_path / "flux1-dev.gguf", component_tensors(base)["transformer"], "Q8_0")
    for name in lacks:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=f"not installed; try 'pip install {' '.join(lacks)}', or a .safetensors"):
        find_sources(tmp_path / "flux1-dev.gguf", files | tokenizers(base))


def test_a_t5_and_a_transformer_that_is_not_packed_take_no_accelerate(base, files, tmp_path, monkeypatch):
    tensors = component_tensors(base)
    t5 = {llama(key): tensor for key, tensor in tensors["text_encoder_2"].items()}
    write_gguf(tmp_path / "t5.gguf", t5, "Q8_0", "t5encoder")
    write_gguf(tmp_path / "flux1-dev.gguf", tensors["transformer"], "BF16")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert load(base, {**files, "text_encoder_2": tmp_path / "t5.gguf"}, tmp_path / "flux1-dev.gguf").max_context == 1


@packed_here
@pytest.mark.parametrize("part, said", [("transformer", "which diffusers cannot unpack; expected one of IQ4_NL, IQ4"),
                                        ("text_encoder_2", "which the package 'gguf' cannot unpack; expected Q8_0")])
def test_a_kind_of_packing_that_nobody_here_unpacks(base, tmp_path, part, said, monkeypatch):
    tensors = {llama(key) if part != "transformer" else key: t for key, t in component_tensors(base)[part].items()}
    write_gguf(tmp_path / "f.gguf", tensors, "Q8_0")
    others = [kind for kind in theirs.SUPPORTED_GGUF_QUANT_TYPES if kind.name != "Q8_0"]
    monkeypatch.setattr(theirs, "SUPPORTED_GGUF_QUANT_TYPES", others)
    monkeypatch.delitem(gguf.quants._type_traits, gguf.GGMLQuantizationType.Q8_0)
    with pytest.raises(UserError, match=f"is packed as Q8_0, {said}"):
        file_parts(tmp_path / "f.gguf")


def test_of_another_model(tmp_path):
    write_gguf(tmp_path / "f.gguf", {f"{name}.weight": torch.zeros(64, 64) for name in ("blk.0.attn_q", "token_embd")},
               "Q8_0", "llama")
    with pytest.raises(UserError, match="is a text encoder of another model"):
        file_parts(tmp_path / "f.gguf")


@packed_here
def test_what_is_packed_is_not_packed_again_and_t5_beside_it_is(base, files, tmp_path):
    write_gguf(tmp_path / "flux1-dev.gguf", component_tensors(base)["transformer"], "Q8_0")
    plain, other = (load(base, files, tmp_path / "flux1-dev.gguf", quantise=way) for way in ("none", "fp8"))
    for name, tensor in plain.transformer.state_dict().items():
        assert torch.equal(tensor, other.transformer.state_dict()[name])
    layer = other.parts["text_encoder_2"].encoder.block[0].layer[0].SelfAttention.q
    assert layer.weight.dtype == torch.float8_e4m3fn
    assert not torch.equal(plain.draw_latents([request()])[0], other.draw_latents([request()])[0])
