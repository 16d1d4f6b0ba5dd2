"""What somebody who manages memory and shows progress needs of a FLUX corrector: parts asked for, previews, options."""

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_flux import write_tiny_flux

from reflect_core.generators import preview as preview_module
from reflect_core.generators.flux_corrector.encoding import vae_scale
from reflect_core.generators.flux_corrector.pipeline import FluxCorrector
from reflect_core.generators.preview import LatentPreview
from reflect_core.types import Pair, Request, UserError

PLAIN = Request("a red circle", 3, 32, 32, 3)
CORRECTED = replace(PLAIN, context=(Pair("add a star", picture=Image.new("RGB", (32, 32), "blue")),))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_flux(tmp_path_factory.mktemp("model"))


@pytest.fixture
def corrector(folder):
    return FluxCorrector.from_folder(folder)


def test_each_part_is_asked_for_before_it_is_used_and_the_transformer_once_a_batch(corrector):
    asked = []
    before = corrector.draw([PLAIN, CORRECTED])
    fresh = FluxCorrector(**{name: part for name, part in corrector.parts.items()}, lora=corrector.lora,
                          tokenizer=corrector.texts.tokenizer, tokenizer_2=corrector.texts.tokenizer_2,
                          scheduler=type("S", (), {"config": corrector.schedule_config}), options=corrector.options)
    fresh.places.manager = lambda name, pixels: asked.append(name) or torch.device("cpu")
    after = fresh.draw([CORRECTED])
    assert asked == ["text_encoder", "text_encoder_2", "vae", "transformer", "vae"]
    assert after[0].picture.tobytes() == before[1].picture.tobytes()
    asked.clear()
    fresh.draw([CORRECTED])
    assert asked == ["transformer", "vae"], "texts and condition are kept"


@pytest.mark.parametrize("decoded", [0, 128 * 128])
def test_previews_come_after_every_step_and_only_when_asked_for(corrector, monkeypatch, decoded):
    monkeypatch.setattr(preview_module, "DECODED", decoded)
    shown = []
    (drawn,) = corrector.draw([PLAIN], lambda at: shown.append(at.preview()))
    assert len(shown) == 3 and all(isinstance(p, Image.Image) and p.mode == "RGB" for one in shown for p in one)
    if decoded:
        # After the last step nothing is left to remove.
        difference = np.asarray(shown[-1][0]).astype(int) - np.asarray(drawn.picture)
        assert np.abs(difference).max() <= 1
    else:
        assert {p.size for one in shown for p in one} == {(32 // vae_scale(corrector.vae),) * 2}
    (again,) = corrector.draw([PLAIN], lambda at: None)
    assert again.picture.tobytes() == drawn.picture.tobytes()


def test_the_linear_map_finds_the_colours_of_an_autoencoder_that_is_one():
    """An autoencoder whose latents are a fixed mix of the mean colours is undone exactly."""
    mix = torch.tensor([[0.5, 0.2, -0.3], [0.1, -0.7, 0.4], [0.3, 0.3, 0.9], [0.0, 0.0, 0.0]])

    class Mixer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(mix)

        def encode(self, pixels):
            means = torch.nn.functional.avg_pool2d(pixels, 4)
            latents = torch.einsum("lc,bchw->blhw", self.weight, means) + 0.25
            return type("Out", (), {"latent_dist": type("D", (), {"mean": latents})})

    preview = LatentPreview(Mixer(), 4)
    colours = torch.tensor([[-1.0, -1, -1], [1, 1, 1], [1, -1, 0.2], [0, 0.6, -0.4]])
    latents = (colours @ mix.T + 0.25).view(1, 2, 2, 4).permute(0, 3, 1, 2)
    (picture,) = preview.pictures(latents)
    expected = ((colours + 1) * 127.5).round().view(2, 2, 3).numpy()
    assert np.abs(np.asarray(picture) - expected).max() <= 1


def test_other_options_share_the_weights(corrector):
    other = corrector.with_options(text_join="search")
    assert other.transformer is corrector.transformer and corrector.options.text_join == "train"
    mine, theirs = corrector.draw([CORRECTED])[0], other.draw([CORRECTED])[0]
    assert mine.picture.tobytes() != theirs.picture.tobytes()
    with pytest.raises(UserError, match="cannot be changed once"):
        corrector.with_options(condition_size=64)


def test_a_model_that_nobody_holds_is_freed_at_once(folder):
    """Not when the garbage collector comes by: two of FLUX's size do not fit."""
    model = FluxCorrector.from_folder(folder)
    model.draw([CORRECTED])
    gone = weakref.ref(model)
    gc.disable()
    try:
        del model
        assert gone() is None
    finally:
        gc.enable()


def test_no_preview_through_an_autoencoder_that_is_half_moved_away(corrector):
    where = next(corrector.vae.decoder.parameters())
    corrector.places.parts["vae"] = torch.nn.ModuleList([torch.nn.Linear(1, 1, device=where.device),
                                                         torch.nn.Linear(1, 1, device="meta")])
    shown = []
    corrector.draw([PLAIN], lambda at: shown.append(at.preview()))
    assert shown == [[], [], []]


def test_a_manager_is_told_how_many_pixels_a_part_works_on(corrector):
    told = {}
    corrector.places.manager = lambda name, pixels: told.update({name: pixels}) or "cpu"
    corrector.draw([CORRECTED, replace(CORRECTED, seed=4)])
    size = corrector.options.condition_size
    assert told == {"text_encoder": 0, "text_encoder_2": 0, "vae": 32 * 32, "transformer": 2 * (32 * 32 + size**2)}
