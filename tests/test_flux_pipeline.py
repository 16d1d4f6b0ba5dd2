"""FluxCorrector on a tiny folder: FluxPipeline's pictures, batches, caches, costs and texts."""

import copy
import math
import warnings
from dataclasses import replace
from inspect import signature

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from PIL import Image
from tiny_flux import CONDITION_SIZE, TEXT_LENGTH, tiny_lora, tiny_transformer, write_tiny_flux

from reflect_core.generators.flux_corrector import pipeline as pipeline_module
from reflect_core.generators.flux_corrector.folder import load_components
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
    drawn = small.draw(requests, lambda at: steps.append((at.step, at.steps)))
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
    def cancel(at):
        if at.step == 2:
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


@pytest.mark.parametrize("change, word", [
    ({"text_join": "both"}, "'train' or 'search'"), ({"posterior": "mean"}, "'mode'"), ({"max_batch": 0}, "max_batch"),
    ({"max_batch": True}, "max_batch"), ({"condition_scale": 0}, "condition_scale"),
    ({"condition_scale": "abc"}, "condition_scale"), ({"condition_scale": math.nan}, "condition_scale"),
    ({"condition_scale": math.inf}, "condition_scale"), ({"true_cfg_scale": 0.5}, "true_cfg_scale"),
    ({"true_cfg_scale": None}, "true_cfg_scale"), ({"true_cfg_scale": math.inf}, "true_cfg_scale"),
    ({"union_cond_attn": "no"}, "union_cond_attn"), ({"latent_lora": "false"}, "latent_lora"),
    ({"condition_offset": [1]}, "two whole"), ({"condition_offset": 5}, "two whole"),
    ({"condition_offset": [True, 0]}, "two whole")])
def test_options_say_what_they_expect(change, word):
    with pytest.raises(UserError, match=word):
        CorrectorOptions(**change)


def test_an_offset_from_json():
    assert CorrectorOptions(condition_offset=[0, -4]).condition_offset == (0, -4)


@pytest.mark.parametrize("request_, word", [
    (plain(width=30), "try 32"), (plain(height=0), "multiple of 8"), (plain(width="abc"), "width is 'abc'"),
    (plain(width=math.nan), "width is nan"), (plain(height=None), "height is None"), (plain(width=32.0), "try 32"),
    (plain(steps=0), "steps"), (plain(steps=True), "steps is True"), (plain(-1), "seed"), (plain(True), "seed is True"),
    (plain(guidance=math.nan), "guidance is nan"), (plain(guidance=None), "guidance is None"),
    (plain(guidance="3"), "guidance is '3'"), (plain(prompt=3), "prompt is 3"),
    (plain(prompt="a \ud800"), "half a character"), (plain(original_prompt=3), "original_prompt is 3"),
    (plain(context=(Pair("add"),)), "no picture"), (plain(context=(Pair("add", picture="a.png"),)), "a str for"),
    (plain(context=(Pair(3, picture=noise_picture(0)),)), "feedback is 3"),
    (plain(context=(Pair("a", picture=noise_picture(0)),) * 2), "at most 1")])
def test_requests_that_cannot_be_drawn(corrector, request_, word):
    with pytest.raises(UserError, match=word):
        corrector.draw([plain(), request_])


def test_a_text_that_is_cut_says_so_once(corrector, folder, capfd):
    """Two reflections that differ only behind the cut make the same picture: that must be seen."""
    fresh = FluxCorrector.from_folder(folder, text_cache=1)
    one, two = corrected(0, feedback="add one red circle"), corrected(0, feedback="add one red square")
    with pytest.warns(UserWarning) as caught:
        first, second = (fresh.draw_latents([request])[0] for request in (one, two))
    assert torch.equal(first, second)
    said = [str(warning.message) for warning in caught]
    assert len(said) == 2 and "T5 sees 12 of the 14 tokens" in said[0]
    assert "does not see the end, 'red circle'" in said[0] and "'red square'" in said[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fresh.draw_latents([one])
        fresh.draw_latents([corrected(0, feedback="add one")])
    with pytest.warns(UserWarning, match="CLIP sees 12 of the"):
        FluxCorrector.from_folder(folder, text_join="search").draw_latents([one])
    assert "Token indices" not in capfd.readouterr().err


def test_a_loaded_lora_is_checked_and_stays_the_callers(folder):
    model = tiny_transformer()
    given = tiny_lora(model).requires_grad_(True)
    drawn = FluxCorrector.from_folder(folder, lora=given, dtype=torch.bfloat16)
    assert all(p.requires_grad and p.dtype == torch.float32 for p in given.parameters())
    assert all(not p.requires_grad and p.dtype == torch.bfloat16 for p in drawn.lora.parameters())
    other = tiny_lora(tiny_transformer(num_attention_heads=4))
    parts = load_components(folder)
    for make in (lambda: FluxCorrector(**parts, lora=other), lambda: FluxCorrector.from_folder(folder, lora=other)):
        with pytest.raises(UserError, match=r"\(4, 64\), but this transformer needs \(4, 32\)"):
            make()


def test_the_lora_is_laid_out_once(folder, monkeypatch):
    made = FluxCorrector.from_folder(folder, true_cfg_scale=2.0)
    made.draw([corrected()])
    monkeypatch.setattr(type(made.lora), "delta", None)
    assert len(made.draw([corrected(), plain()])) == 2


def test_components_that_do_not_go_together(folder):
    parts = load_components(folder)
    for name in ("vae", "text_encoder_2"):
        half = copy.deepcopy(parts[name]).to(torch.bfloat16)
        with pytest.raises(UserError, match=f"{name} is torch.bfloat16 and the transformer torch.float32"):
            FluxCorrector(**parts | {name: half})
    for name, part in (("vae", copy.deepcopy(parts["vae"])), ("lora", tiny_lora(tiny_transformer()))):
        with pytest.raises(UserError, match=f"{name} is on meta and the transformer on cpu"):
            FluxCorrector(**parts | {name: part.to("meta")})


def test_encoders_may_be_elsewhere(folder):
    """Their states are kept on the CPU, wherever the rest is; here a device without data, as there is no other."""
    parts = load_components(folder, device="meta", encoder_device="cpu")
    places = {name: part.device.type for name, part in parts.items() if hasattr(part, "device")}
    assert places == {"transformer": "meta", "vae": "meta", "text_encoder": "cpu", "text_encoder_2": "cpu"}
    texts = FluxCorrector(**parts).texts
    assert texts.pooled(PROMPT)[0].device.type == texts.states(PROMPT)[0].device.type == "cpu"


@pytest.mark.parametrize("error", [MemoryError(), torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried"),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_too_little_memory_says_what_to_change(folder, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    fresh = FluxCorrector.from_folder(folder)
    monkeypatch.setattr(pipeline_module, "denoise", fail)
    with pytest.raises(UserError, match="not enough memory.*encoder_device.*max_batch.*dtype"):
        fresh.draw([plain()])
    monkeypatch.setattr(FluxTransformer2DModel, "from_pretrained", fail)
    with pytest.raises(UserError, match="not enough memory.*encoder_device"):
        FluxCorrector.from_folder(folder)


def test_a_lora_brings_the_options_it_was_trained_with(tmp_path, folder):
    """On top of the model's own, beneath what the caller says; from a folder and from the file in it."""
    from reflect_core.presets.choice import ModelChoice

    tiny_lora(tiny_transformer()).save(tmp_path)
    without = ModelChoice(str(folder), str(tmp_path)).fingerprint()
    (tmp_path / "reflect.json").write_text('{"options": {"condition_size": 24, "condition_offset": [0, 0]}}')
    for lora in (tmp_path, tmp_path / "pytorch_lora_weights.safetensors"):
        options = FluxCorrector.from_folder(folder, lora=lora).options
        assert (options.condition_size, options.condition_offset) == (24, (0, 0))
        assert options.max_sequence_length == TEXT_LENGTH  # of the model's reflect.json
        assert FluxCorrector.from_folder(folder, lora=lora, condition_size=8).options.condition_size == 8
    assert FluxCorrector.from_folder(folder).options.condition_size == CONDITION_SIZE
    assert ModelChoice(str(folder), str(tmp_path)).fingerprint() != without


def test_a_model_without_lora_draws_plain_only(tmp_path, folder, corrector):
    bare = FluxCorrector.from_folder(write_tiny_flux(tmp_path, lora=False))
    assert (bare.max_context, corrector.max_context) == (0, 1)
    assert torch.equal(bare.draw_latents([plain()])[0], corrector.draw_latents([plain()])[0])
    with pytest.raises(UserError, match="has no corrector"):
        bare.draw([corrected()])
    given = FluxCorrector.from_folder(tmp_path, lora=folder / "lora")
    assert torch.equal(given.draw_latents([corrected()])[0], corrector.draw_latents([corrected()])[0])
