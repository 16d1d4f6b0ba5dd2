"""FLUX in GGUF: the numbers that its packed matrices stand for, and the errors of a file that is cut short."""

import diffusers
import numpy as np
import pytest
import torch
from flux_files import component_tensors, write_base, write_files
from test_single_files import load, request, same

from reflect_core.types import UserError
from reflect_core.weight_file import WeightFile

gguf = pytest.importorskip("gguf")
packed_here = pytest.mark.skipif(tuple(map(int, diffusers.__version__.split(".")[:2])) < (0, 35),
                                 reason="diffusers before 0.35 reads no transformer in GGUF that it has not converted")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def files(base, tmp_path_factory):
    return write_files(base, tmp_path_factory.mktemp("files"))


def packed_kind(key, tensor, kind):
    """As city96's converter has it: matrices packed, all that is small in fp32."""
    return kind if tensor.ndim == 2 and tensor.shape[1] % 32 == 0 and "bias" not in key else "F32"


def write_gguf(path, tensors, kind, architecture="flux"):
    """A GGUF file by gguf's own writer, and what its tensors stand for."""
    writer, meant = gguf.GGUFWriter(path, architecture), {}
    for key, tensor in tensors.items():
        q = gguf.GGMLQuantizationType[packed_kind(key, tensor, kind)]
        data = gguf.quants.quantize(tensor.numpy().astype(np.float32), q)
        writer.add_tensor(key, data, raw_dtype=q)
        meant[key] = torch.from_numpy(np.ascontiguousarray(gguf.quants.dequantize(data, q)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


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


def test_what_is_packed_is_not_packed_again(base, files, tmp_path):
    write_gguf(tmp_path / "flux1-dev.gguf", component_tensors(base)["transformer"], "Q8_0")
    with pytest.raises(UserError, match="packed by GGUF already.*quantise=none"):
        load(base, files, tmp_path / "flux1-dev.gguf", quantise="fp8")
