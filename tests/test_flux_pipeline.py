"""FluxCorrector on a tiny folder: FluxPipeline's pictures, batches, caches, costs and texts."""

from dataclasses import replace
from inspect import signature

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image
from tiny_flux import CONDITION_SIZE, TEXT_LENGTH, write_tiny_flux

from reflect_core.generators.flux_corrector.options import CorrectorOptions
from reflect_core.generators.flux_corrector.pipeline import FluxCorrector
from reflect_core.types import Pair, Request, UserError

PROMPT = "a red circle left of two blue square"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_flux(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def corrector(folder):
    return FluxCorrector.from_folder(folder)


@pytest.fixture(scope="module")
def pipeline(folder):
    made = FluxPipeline.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    made.set_progress_bar_config(disable=True)
    return made


def plain(seed: int = 0, **changes) -> Request:
    return replace(Request(PROMPT, seed, 32, 32, 3), **changes)


def noise_picture(seed: int, side: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8))


def corrected(seed: int = 0, picture: int = 0, feedback: str = "add one blue square", **changes) -> Request:
    return plain(seed, context=(Pair(feedback, picture=noise_picture(picture)),), **changes)


def pixels(drawn) -> np.ndarray:
    return np.stack([np.asarray(d.picture) for d in drawn]).astype(int)


@pytest.mark.parametrize("size", [(32, 32), (48, 16)])
def test_plain_is_flux_pipeline(corrector, pipeline, size):
    requests = [plain(seed, width=size[0], height=size[1]) for seed in (5, 6)]
    settings = dict(prompt=[PROMPT] * 2, width=size[0], height=size[1], num_inference_steps=3,
                    guidance_scale=3.5,
                    max_sequence_length=TEXT_LENGTH)
    generators = [torch.Generator().manual_seed(r.seed) for r in requests]
    theirs = pipeline(**settings, generator=generators, output_type="latent").images
    assert (torch.stack(corrector.draw_latents(requests)) - theirs).abs().max() < 1e-5
    generators = [torch.Generator().manual_seed(r.seed) for r in requests]
    images = pipeline(**settings, generator=generators).images
    drawn = corrector.draw(requests)
    assert drawn[0].picture.size == size and drawn[0].picture.mode == "RGB"
    assert np.abs(pixels(drawn) - np.stack([np.asarray(i) for i in images]).astype(int)).max() <= 1


@pytest.mark.skipif("negative_prompt" not in signature(FluxPipeline.__call__).parameters,
                    reason="this diffusers has no true_cfg_scale")
def test_true_cfg_is_flux_pipeline(folder, pipeline):
    guided = FluxCorrector.from_folder(folder, true_cfg_scale=2.5)
    theirs = pipeline(prompt=PROMPT, negative_prompt="", true_cfg_scale=2.5, width=32, height=32,
                      num_inference_steps=3, guidance_scale=2.0, max_sequence_length=TEXT_LENGTH,
                      generator=torch.Generator().manual_seed(4), output_type="latent").images
    request = plain(4, guidance=2.0)
    assert (guided.draw_latents([request])[0] - theirs[0]).abs().max() < 1e-5
    drawn = guided.draw([plain(4), corrected(4)])
    assert [d.cost.denoiser_evaluations for d in drawn] == [6, 6]


def test_rows_equal_singles_and_keep_their_order(corrector):
    requests = [plain(1), corrected(2, 1), plain(3, steps=2), corrected(4, 2), plain(5, guidance=1.0),
                corrected(1, 1), plain(6, width=16)]
    together = corrector.draw_latents(requests)
    for request, row in zip(requests, together):
        single = corrector.draw_latents([request])[0]
        assert single.shape == row.shape
        assert (single - row).abs().max() < 1e-5
    assert len({tuple(row.flatten()[:4].tolist()) for row in together}) == len(requests)


def test_the_same_requests_come_out_bit_for_bit(folder, corrector):
    requests = [plain(1), corrected(2, 1), corrected(3, 2), plain(4)]
    first, second = corrector.draw_latents(requests), corrector.draw_latents(requests)
    cold = FluxCorrector.from_folder(folder).draw_latents(requests)
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(first, second, cold))


def test_caches_that_forget_change_nothing(folder, corrector):
    forgetful = FluxCorrector.from_folder(folder, text_cache=1, condition_cache=1)
    requests = [corrected(seed, seed % 2, f"make it {word}") for seed,
                word in enumerate(("red", "blue", "green"))]
    for _ in range(2):
        pairs = zip(corrector.draw_latents(requests), forgetful.draw_latents(requests))
        assert all(torch.equal(a, b) for a, b in pairs)


def test_max_batch_splits_without_changing_pictures(folder, corrector):
    requests = [corrected(seed, seed) for seed in range(5)]
    steps = []
    small = FluxCorrector.from_folder(folder, max_batch=2)
    drawn = small.draw(requests, lambda step, of: steps.append((step, of)))
    assert steps == [(1, 3), (2, 3), (3, 3)] * 3
    assert np.abs(pixels(drawn) - pixels(corrector.draw(requests))).max() <= 1


def test_costs_are_counted(folder):
    fresh = FluxCorrector.from_folder(folder)
    first = fresh.draw([plain(0), plain(1), corrected(2), corrected(3)])
    assert [d.cost.pictures for d in first] == [1] * 4
    assert [d.cost.denoiser_evaluations for d in first] == [3] * 4
    # CLIP and T5 once for the prompt; CLIP's is found again, T5's joint text is new once.
    assert [d.cost.text_encoder_calls for d in first] == [2, 0, 1, 0]
    assert [d.cost.text_encoder_calls for d in fresh.draw([plain(7), corrected(8)])] == [0, 0]
    assert all(d.cost.seconds > 0 for d in first)


def test_the_condition_and_its_feedback_matter(corrector):
    base, picture, words = corrector.draw_latents([corrected(0, 1), corrected(0, 2),
                                                   corrected(0, 1, "remove it")])
    assert (base - picture).abs().max() > 1e-4
    assert (base - words).abs().max() > 1e-4


def test_cut_attention_ignores_the_picture(folder):
    cut = FluxCorrector.from_folder(folder, union_cond_attn=False)
    one, two = cut.draw_latents([corrected(0, 1), corrected(0, 2)])
    assert torch.equal(one, two)


def test_posterior_mode_and_sample(folder, corrector):
    mode = FluxCorrector.from_folder(folder, posterior="mode")
    assert corrector.options.posterior == "sample"
    random = torch.Generator().manual_seed(0)
    picture = noise_picture(1)
    fixed = [mode.conditions.tokens(picture, random) for _ in range(2)]
    drawn = [corrector.conditions.tokens(picture, random) for _ in range(2)]
    side = CONDITION_SIZE // 8
    assert fixed[0].shape == (1, side * side, 16)
    assert torch.equal(*fixed)
    assert not torch.equal(*drawn)


def test_a_callback_may_cancel(corrector):
    def cancel(step, steps):
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        corrector.draw([plain()], cancel)


def test_nothing_to_draw(corrector):
    assert corrector.draw([]) == []


def test_half_precision_draws(folder):
    half = FluxCorrector.from_folder(folder, dtype=torch.bfloat16)
    assert half.transformer.dtype == torch.bfloat16
    assert pixels(half.draw([plain(), corrected()])).shape == (2, 32, 32, 3)


def test_texts_of_both_joins():
    request = Request("a calm red circle", 0, context=(Pair("add one"),), original_prompt="a red circle")
    train, search = CorrectorOptions(), CorrectorOptions(text_join="search")
    assert train.texts(request) == ("a red circle", "a calm red circle [Reflexion] add one")
    assert search.texts(request) == ("a calm red circle [Reflexion]: add one",) * 2
    silent = replace(request, context=(Pair("  "),))
    assert train.texts(silent) == ("a red circle", "a calm red circle")
    assert search.texts(silent) == ("a calm red circle",) * 2
    assert train.texts(replace(request, context=())) == ("a calm red circle",) * 2


def test_options_say_what_they_expect():
    for change, word in (({"text_join": "both"}, "'train' or 'search'"), ({"posterior": "mean"}, "'mode'"),
                         ({"max_batch": 0}, "max_batch"), ({"condition_scale": 0}, "condition_scale"),
                         ({"true_cfg_scale": 0.5}, "true_cfg_scale"),
                         ({"condition_offset": [1]}, "two whole")):
        with pytest.raises(UserError, match=word):
            CorrectorOptions(**change)
    assert CorrectorOptions(condition_offset=[0, -4]).condition_offset == (0, -4)


def test_requests_that_cannot_be_drawn(corrector, folder):
    picture = noise_picture(0)
    for request, word in ((plain(width=30), "try 32"), (plain(height=0), "multiple of 8"),
                          (plain(steps=0), "steps"),
                          (plain(-1), "seed"), (plain(context=(Pair("add"),)), "no picture"),
                          (plain(context=(Pair("a", picture=picture),) * 2), "at most 1")):
        with pytest.raises(UserError, match=word):
            corrector.draw([plain(), request])


def test_a_model_without_lora_draws_plain_only(tmp_path, folder, corrector):
    bare = FluxCorrector.from_folder(write_tiny_flux(tmp_path, lora=False))
    assert (bare.max_context, corrector.max_context) == (0, 1)
    assert torch.equal(bare.draw_latents([plain()])[0], corrector.draw_latents([plain()])[0])
    with pytest.raises(UserError, match="no corrector LoRA"):
        bare.draw([corrected()])
    given = FluxCorrector.from_folder(tmp_path, lora=folder / "lora")
    assert torch.equal(given.draw_latents([corrected()])[0], corrector.draw_latents([corrected()])[0])
