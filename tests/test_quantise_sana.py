"""SANA and Reflect-DiT with weights in fewer bits; what the two families share is in test_quantise.py."""

import numpy as np
import pytest
import torch
import transformers
from aligned import aligned
from flux_files import FP8
from test_quantise import needs  # noqa: F401
from test_reflect_dit_pipeline import PLAIN, told
from tiny_flux import write_tiny_flux
from tiny_sana import write_tiny_sana

from reflect_core.generators.flux_corrector.pipeline import FluxCorrector
from reflect_core.generators.quantise import WAYS
from reflect_core.generators.reflect_dit.pipeline import ReflectDiT

REQUESTS = [PLAIN, told("add a star"), told("add a star", "make it blue")]


@pytest.fixture(scope="module", params=["its own", "beside plain SANA"])
def model(request, tmp_path_factory):
    """(folder, checkpoint) of the two ways in which Reflect-DiT lies on a disk."""
    folder = write_tiny_sana(tmp_path_factory.mktemp("reflect"), wide=True)
    if request.param == "its own":
        return folder, None
    plain = write_tiny_sana(tmp_path_factory.mktemp("plain"), reflect=False, seed=1, wide=True)
    checkpoint = folder / "transformer"
    (folder / "image_encoder").rename(checkpoint / "image_encoder")
    return plain, checkpoint


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return write_tiny_sana(tmp_path_factory.mktemp("plain"), reflect=False, wide=True)


def made(model, quantise="none", **how):
    return ReflectDiT.from_folder(*model, quantise=quantise, **{"image_tokens": 16, **how})


def latents(generator, monkeypatch):
    """Of each picture, before the autoencoder."""
    kept = []
    with monkeypatch.context() as patch:
        picture = generator._picture
        patch.setattr(generator, "_picture", lambda row, request: kept.append(row.float().cpu())
                      or picture(row, request))
        generator.draw(REQUESTS if generator.max_context else [PLAIN])
    return torch.cat(kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quantise", [way for way in WAYS if way != "none"])
def test_it_draws_nearly_the_same(model, quantise, dtype, needs, monkeypatch):  # noqa: F811
    needs(quantise)
    packed, whole = (latents(made(model, way, dtype=dtype), monkeypatch) for way in (quantise, "none"))
    assert packed.shape == whole.shape and not torch.equal(packed, whole), "the weights were rounded"
    # Of weights without any structure; guidance magnifies what is lost.
    assert (packed - whole).norm() / whole.norm() < 0.5


@pytest.mark.parametrize("quantise, held", [("fp8", FP8), ("nf4", torch.uint8), ("int8", torch.int8)])
def test_transformer_and_gemma_are_packed_and_the_rest_is_not(model, plain, quantise, held, needs):  # noqa: F811
    needs(quantise)
    for one in (made(model, quantise), made((plain,), quantise)):
        block = one.transformer.transformer_blocks[1]
        assert {block.attn1.to_q.weight.dtype, block.attn2.to_k.weight.dtype} == {held}
        assert one.parts["text_encoder"].layers[0].mlp.up_proj.weight.dtype == held
        assert one.parts["text_encoder"].embed_tokens.weight.dtype == torch.float32
        assert one.transformer.dtype == torch.float32
        rest = [one.vae, *([one.context, one.parts["image_encoder"]] if one.context else [])]
        assert {p.dtype for part in rest for p in part.parameters()} == {torch.float32}


def test_a_checkpoint_is_packed_as_a_folder_is(tmp_path, needs, monkeypatch):  # noqa: F811
    """Reflect-DiT's tensors go into SANA before it is packed, plain SANA's are packed as they are loaded."""
    needs("nf4")
    plain = write_tiny_sana(tmp_path / "plain", reflect=False, wide=True)
    reflect = write_tiny_sana(tmp_path / "reflect", wide=True)
    one, other = made((plain,), "nf4"), made((reflect,), "nf4")
    theirs = dict(other.transformer.named_parameters())
    assert all(torch.equal(p.data, theirs[name].data) for name, p in one.transformer.named_parameters())
    assert torch.equal(latents(aligned(one), monkeypatch), latents(aligned(other), monkeypatch)[:1])


@pytest.mark.parametrize("quantise", ["fp8", "nf4", "torchao-int8"])
@pytest.mark.parametrize("offload", ["component", "layers"])
def test_packed_weights_are_offloaded_and_draw_the_same(model, quantise, offload, needs, monkeypatch):  # noqa: F811
    """`cpu:0` is another name than the CPU's, so that what goes home and comes is moved."""
    needs(quantise)
    if quantise == "nf4" and int(transformers.__version__.split(".")[0]) < 5:
        pytest.skip("transformers 4 takes cpu:0 for an accelerator")
    stays, moved = made(model, quantise), made(model, quantise, device="cpu:0", offload=offload)
    assert torch.equal(latents(aligned(stays), monkeypatch), latents(moved, monkeypatch))


@pytest.mark.parametrize("write, cls, large", [(write_tiny_flux, FluxCorrector, "text_encoder_2"),
                                               (write_tiny_sana, ReflectDiT, "text_encoder")])
def test_with_offload_bitsandbytes_packs_on_the_gpu(write, cls, large, tmp_path, monkeypatch):
    """Nothing is patched of what says where it can: the device of the computation is a GPU, the home is not."""
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("accelerate")
    packs = []

    def stop(folder, name, entry, dtype, device, quantise="none", pack_on=None):
        packs.append((name, str(device), quantise, str(pack_on)))
        return torch.nn.Linear(1, 1)

    class Enough(Exception):
        pass

    monkeypatch.setattr(f"{cls.__module__.rpartition('.')[0]}.folder.load_packed", stop)
    monkeypatch.setattr(f"{cls.__module__.rpartition('.')[0]}.folder.load", lambda *args: pytest.skip("never"),
                        raising=False)
    monkeypatch.setattr(f"{cls.__module__.rpartition('.')[0]}.folder._fit_tokenizer", lambda *parts: None,
                        raising=False)
    monkeypatch.setattr(cls, "__init__", lambda self, **parts: (_ for _ in ()).throw(Enough))
    write(tmp_path, **({"reflect": False} if cls is ReflectDiT else {}))
    with pytest.raises(Enough):
        cls.from_folder(tmp_path, device="cuda", offload="component", quantise="nf4")
    assert {name for name, device, way, on in packs if (device, way, on) == ("cpu", "nf4", "cuda")} == {
        "transformer", large}
    assert {way for name, _, way, _ in packs if name not in ("transformer", large)} == {"none"}


def test_encoders_apart_from_the_rest(model, monkeypatch):
    apart = made(model, device="cpu:0", encoder_device="cpu")
    assert torch.equal(latents(aligned(apart), monkeypatch), latents(aligned(made(model)), monkeypatch))
    moved = made(model, device="cpu:0", encoder_device="cpu", offload="component")
    assert np.array_equal(*(np.asarray(aligned(one).draw([PLAIN])[0].picture) for one in (moved, apart)))
    devices = moved.places.manager.devices
    assert str(devices["image_encoder"]) == str(devices["text_encoder"]) == "cpu" != str(devices["vae"])
