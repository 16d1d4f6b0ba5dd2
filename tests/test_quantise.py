"""Weights in fewer bits: what is packed, what it computes, what is said where a package is not there."""

import sys

import numpy as np
import pytest
import torch
import transformers
from aligned import aligned
from flux_files import FP8, drawn, load, request, same

from reflect_core.generators import packed
from reflect_core.generators.flux_corrector.pipeline import FluxCorrector
from reflect_core.generators.quantise import NEED_GPU, PACKAGES, WAYS, check_quantise
from reflect_core.types import Pair, UserError


@pytest.fixture
def needs(monkeypatch):
    """The packages of a way, or the test is skipped. diffusers refuses bitsandbytes where there is no GPU, which
    bitsandbytes itself does not, so that it is told there is one."""
    def of(quantise):
        if quantise in PACKAGES:
            pytest.importorskip(PACKAGES[quantise])
            pytest.importorskip("accelerate")
        if quantise in NEED_GPU:
            monkeypatch.setattr("reflect_core.generators.quantise.NEED_GPU", ())
            monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return of


def both_ways(base, files, quantise, **changes):
    return (FluxCorrector.from_folder(base, quantise=quantise, **changes),
            load(base, files, quantise=quantise, **changes))


@pytest.mark.parametrize("quantise", [way for way in WAYS if way != "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_folder_and_files_agree_and_are_near_the_whole_weights(base, files, quantise, dtype, needs):
    needs(quantise)
    folder, single = both_ways(base, files, quantise, dtype=dtype)
    plain = FluxCorrector.from_folder(base, dtype=dtype)
    for a, b, whole in zip(drawn(folder)[1:], drawn(single)[1:], drawn(plain)[1:], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
        assert not np.array_equal(a, whole), "the weights were rounded"
        assert np.linalg.norm(a - whole) / np.linalg.norm(whole) < 0.3
    for made in (folder, single):
        assert made.transformer.dtype == dtype and made.draw_latents([request()])[0].dtype == dtype


@pytest.mark.parametrize("quantise, held", [("fp8", FP8), ("nf4", torch.uint8), ("int8", torch.int8)])
def test_transformer_and_t5_are_packed_and_the_rest_is_not(base, files, quantise, held, needs):
    needs(quantise)
    folder, single = both_ways(base, files, quantise)
    for name in ("transformer", "text_encoder_2"):
        theirs = dict(single.parts[name].named_parameters())
        assert all(torch.equal(p.data, theirs[key].data) for key, p in folder.parts[name].named_parameters()), name
    for made in (folder, single):
        transformer, t5 = made.transformer, made.parts["text_encoder_2"]
        assert transformer.transformer_blocks[0].attn.to_q.weight.dtype == held
        assert transformer.single_transformer_blocks[1].proj_out.weight.dtype == held
        assert t5.encoder.block[0].layer[0].SelfAttention.q.weight.dtype == held
        for name in ("vae", "text_encoder"):
            assert {p.dtype for p in made.parts[name].parameters()} == {torch.float32}


def test_torchao_keeps_int8(base, files, needs):
    needs("torchao-int8")
    for made in both_ways(base, files, "torchao-int8"):
        for part, layer in ((made.transformer, "single_transformer_blocks.0.proj_mlp"),
                            (made.parts["text_encoder_2"], "encoder.block.0.layer.0.SelfAttention.q")):
            weight = part.get_submodule(layer).weight
            assert type(weight).__name__ == "Int8Tensor" or "Quantized" in type(weight).__name__


def test_fp8_is_the_layers_weights_rounded(base, files):
    plain = FluxCorrector.from_folder(base)
    for made in both_ways(base, files, "fp8"):
        for name, layer in made.transformer.named_modules():
            if isinstance(layer, torch.nn.Linear) and layer.weight.dtype == FP8:
                assert torch.equal(layer.weight, plain.transformer.get_submodule(name).weight.to(FP8))


class Packed(torch.nn.Linear):
    """A linear layer whose weight is no matrix that anybody else could read."""

    @classmethod
    def of(cls, layer):
        made = cls(layer.in_features, layer.out_features, device="meta")
        made.bias = layer.bias
        made.weight = torch.nn.Parameter(layer.weight.detach().flatten().view(torch.uint8), requires_grad=False)
        return made

    def forward(self, x):
        weight = self.weight.view(torch.float32).view(self.out_features, self.in_features)
        return torch.nn.functional.linear(x, weight, self.bias)


def test_our_forward_asks_no_layer_for_its_weight(base):
    made, plain = FluxCorrector.from_folder(base), FluxCorrector.from_folder(base)
    for name, layer in list(made.transformer.named_modules()):
        if type(layer) is torch.nn.Linear:
            made.transformer.set_submodule(name, Packed.of(layer))
    made = FluxCorrector(**{n: getattr(made, n) for n in ("transformer", "vae", "lora", "options", "defaults")},
                         text_encoder=made.parts["text_encoder"], text_encoder_2=made.parts["text_encoder_2"],
                         tokenizer=made.texts.tokenizer, tokenizer_2=made.texts.tokenizer_2,
                         scheduler=type("S", (), {"config": made.schedule_config}))
    for name, part in made.parts.items():
        if name != "transformer":
            assert {p.dtype for p in part.parameters()} == {torch.float32}
    one, two = made.draw_latents([request()]), plain.draw_latents([request()])
    assert torch.allclose(one[0], two[0], atol=1e-5)
    picture = plain.draw([request()])[0].picture
    pair = (Pair("make it blue", picture=picture),)
    assert torch.allclose(made.draw_latents([request(pair)])[0], plain.draw_latents([request(pair)])[0], atol=1e-5)


@pytest.mark.parametrize("quantise", PACKAGES)
def test_a_package_that_is_not_there(quantise, base, monkeypatch):
    monkeypatch.setitem(sys.modules, PACKAGES[quantise], None)
    with pytest.raises(UserError, match=f"pip install {PACKAGES[quantise]}.*fp8, which needs none"):
        FluxCorrector.from_folder(base, quantise=quantise)


def test_bitsandbytes_without_a_gpu_is_told_before_anything_is_loaded(base, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", sys)
    with pytest.raises(UserError, match="GPU only.*--device cuda; try quantise=torchao-int8"):
        FluxCorrector.from_folder(base, quantise="nf4")


def test_what_cannot_be_moved_is_not_offloaded(base, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", sys)
    with pytest.raises(UserError, match="stay where they were.*, and option offload is 'component'.*try quantise=nf4"):
        FluxCorrector.from_folder(base, quantise="int8", offload="component")


@pytest.mark.parametrize("quantise", ["fp8", "nf4", "torchao-int8"])
@pytest.mark.parametrize("offload", ["component", "layers"])
def test_packed_weights_are_offloaded_and_draw_the_same(base, files, quantise, offload, needs, monkeypatch):
    """`cpu:0` is another name than the CPU's, so that what goes home and comes is moved."""
    needs(quantise)
    if quantise == "nf4" and int(transformers.__version__.split(".")[0]) < 5:
        pytest.skip("transformers 4 takes cpu:0 for an accelerator")
    moves, copies = [], []
    move, copy = torch.nn.Module.to, packed.copy_on
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *a, **k: moves.append((type(self).__name__, str(a)))
                        or move(self, *a, **k))
    monkeypatch.setattr(packed, "copy_on",
                        lambda held, device: copies.append(type(held).__name__) or copy(held, device))
    for plain, other in zip(both_ways(base, files, quantise),
                            both_ways(base, files, quantise, device="cpu:0", offload=offload), strict=True):
        moves.clear(), copies.clear()
        assert torch.equal(aligned(plain).draw_latents([request()])[0], other.draw_latents([request()])[0])
        layers = {name for name, where in moves if "index=0" in where}
        assert quantise != "nf4" or "Params4bit" in copies
        assert not {"FluxTransformer2DModel", "T5EncoderModel"} & layers, "not as a whole"


def test_a_way_that_there_is_not():
    with pytest.raises(UserError, match="'fp4'; expected one of none, fp8, int8, nf4, torchao-int8"):
        check_quantise("fp4")


def test_none_is_as_before(base, files):
    assert same(*both_ways(base, files, "none"))
