"""The transformer's blocks through torch.compile, and large pictures decoded by tiles."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from tiny_flux import write_tiny_flux
from tiny_sana import write_tiny_sana
from torch._dynamo.testing import CompileCounter

from reflect_core.generators import offload as offload_module
from reflect_core.generators import tiling
from reflect_core.generators.compiled import Compiled
from reflect_core.generators.flux_corrector.pipeline import FluxCorrector
from reflect_core.generators.reflect_dit.pipeline import ReflectDiT
from reflect_core.types import Pair, Request, UserError

FAMILIES = {"flux": (write_tiny_flux, FluxCorrector), "sana": (write_tiny_sana, ReflectDiT)}
PLAIN = Request("a red circle", 3, 32, 32, 3)
CORRECTED = replace(PLAIN, context=(Pair("add a star", picture=Image.new("RGB", (32, 32), "blue")),))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    write, kind = FAMILIES[request.param]
    return request.param, write(tmp_path_factory.mktemp(request.param)), kind


@pytest.fixture(autouse=True)
def forget():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def latents(model, request):
    """Before they are rounded to grey levels."""
    if isinstance(model, FluxCorrector):
        return model.draw_latents([request])[0]
    with torch.no_grad():
        return model._sample([request], *model.inputs.encode([[request]]))[0]


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("request_", [PLAIN, CORRECTED], ids=["plain", "corrected"])
def test_compiled_blocks_draw_the_same(family, request_, backend):
    """The first backend does all but write code, for which torch's own needs a minute."""
    _, folder, kind = family
    expected = latents(kind.from_folder(folder), request_)
    model = kind.from_folder(folder, compile=True)
    assert isinstance(model.run, Compiled) and model.run.backend == "inductor"
    model.run.backend = backend
    assert (latents(model, request_) - expected).abs().max() < 1e-4


def test_each_kind_of_block_is_compiled_once(family):
    name, folder, kind = family
    model, counter = kind.from_folder(folder), CompileCounter()
    model.run = Compiled(model.places, counter)
    for seed in range(2):
        latents(model, replace(CORRECTED, seed=seed))
    # FLUX has double blocks, single blocks and a last one; of each family all blocks of a kind share the work.
    assert counter.frame_count <= {"flux": 3, "sana": 1}[name] + 1
    compiled = counter.frame_count
    latents(model, replace(CORRECTED, seed=5, prompt="a blue star"))
    assert counter.frame_count == compiled and counter.op_count > 10


def test_compiled_blocks_can_be_streamed(family, monkeypatch):
    """A block is asked for though no hook of its layers is called."""
    _, folder, kind = family
    expected = latents(kind.from_folder(folder), CORRECTED)

    def home(self):
        for tensor, kept in self.tensors.values():
            tensor.data = torch.full_like(kept, torch.nan) if kept.is_floating_point() else torch.full_like(kept, -1)
    monkeypatch.setattr(offload_module._Group, "_home", home)
    model = kind.from_folder(folder, device="cpu:0", offload="layers")
    model.run = Compiled(model.places, "eager")
    model.places.rest = lambda: None
    assert (latents(model, CORRECTED) - expected).abs().max() < 1e-4
    assert model.places.manager.parts["transformer"].stream.now is not None


def test_a_machine_without_a_compiler_is_told(family):
    _, folder, kind = family

    def broken(graph, inputs):
        raise RuntimeError("no working C++ compiler")
    model = kind.from_folder(folder)
    model.run = Compiled(model.places, broken)
    with pytest.raises(UserError, match="no working C.. compiler.*try compile=false"):
        latents(model, PLAIN)


@pytest.mark.parametrize("side", [32, 64])
def test_tiles_are_an_approximation_of_large_pictures_alone(family, side, monkeypatch):
    _, folder, kind = family
    whole = kind.from_folder(folder)
    monkeypatch.setattr(tiling, "SIDE", 32)
    tiled = kind.from_folder(folder, vae_tiling=True)
    request = replace(PLAIN, width=side, height=side)
    seen = []
    decode = tiled.vae.decoder.forward
    monkeypatch.setattr(tiled.vae.decoder, "forward", lambda z, *more: seen.append(z.shape[2:]) or decode(z, *more))
    same = tiled.draw([request])[0].picture.tobytes() == whole.draw([request])[0].picture.tobytes()
    scale = 32 // seen[0][-1] if side == 32 else None
    assert same == (side == 32) and (len(seen) == 1 if scale else len(seen) > 1)
    assert max(max(shape) for shape in seen) * 4 <= 32


def test_options_must_be_true_or_false(family):
    _, folder, kind = family
    for name in ("vae_tiling", "compile"):
        with pytest.raises(UserError, match=f"option {name} is 'yes'; expected true or false"):
            kind.from_folder(folder, **{name: "yes"})
