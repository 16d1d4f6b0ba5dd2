"""ReflectDiT as a generator: equal to diffusers' SanaPipeline without context, the same in a batch as alone."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import SanaPipeline
from PIL import Image
from tiny_sana import write_tiny_sana
from transformers import SiglipImageProcessorPil

from reflect_core.generators.reflect_dit.encoding import instruction
from reflect_core.generators.reflect_dit.pipeline import ReflectDiT
from reflect_core.types import Pair, Request, UserError

PLAIN = Request("a red circle", 3, 32, 32, 4, 4.5)


def picture(seed, mode="RGB", size=(32, 32)):
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def told(*feedbacks, seed=3, prompt="a red circle"):
    pairs = tuple(Pair(text, picture=picture(k)) for k, text in enumerate(feedbacks))
    return replace(PLAIN, seed=seed, prompt=prompt, context=pairs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_sana(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder):
    return ReflectDiT.from_folder(folder)


def pixels(drawn):
    return [np.asarray(one.picture).astype(int) for one in drawn]


@pytest.mark.parametrize("said", ["sana", "", "make it more : "])
@pytest.mark.parametrize("guidance", [4.5, 1.0])
def test_without_context_it_is_sana_pipeline(tmp_path, said, guidance):
    plain = write_tiny_sana(tmp_path, reflect=False)
    mine = ReflectDiT.from_folder(plain, prompt_instruction=said)
    pipeline = SanaPipeline.from_pretrained(plain)
    pipeline.set_progress_bar_config(disable=True)
    words = {"sana": instruction("sana").split("\n"), "": None}.get(said, [said])
    theirs = pipeline("a red circle", generator=torch.Generator().manual_seed(3), height=32, width=32,
                      num_inference_steps=4, guidance_scale=guidance, use_resolution_binning=False,
                      complex_human_instruction=words).images[0]
    (own,) = mine.draw([replace(PLAIN, guidance=guidance)])
    assert np.abs(np.asarray(theirs).astype(int) - np.asarray(own.picture)).max() <= 1
    assert mine.max_context == 0 and own.cost.denoiser_evaluations == (8 if guidance > 1 else 4)


def test_states_are_those_of_sana_pipeline(folder, tmp_path):
    pipeline = SanaPipeline.from_pretrained(write_tiny_sana(tmp_path, reflect=False))
    mine = ReflectDiT.from_folder(tmp_path)
    chi = instruction("sana")
    for text in ("A Red circle ", "two blue squares left of a star"):
        states, mask, _, _ = pipeline.encode_prompt(text, False, complex_human_instruction=chi.split("\n"))
        own, _ = mine.texts.states(text, chi)
        assert len(own) == int(mask.sum()) and (states[0, : len(own)] - own).abs().max() < 1e-5


def test_picture_tokens_are_those_of_siglips_processor(model):
    processor = SiglipImageProcessorPil(size={"height": 48, "width": 48})
    shown = picture(1, size=(70, 40))
    with torch.no_grad():
        values = processor(shown, return_tensors="pt").pixel_values
        states = model.parts["image_encoder"](values).last_hidden_state
        grid = states.transpose(1, 2).unflatten(2, (12, 12))
        expected = torch.nn.functional.avg_pool2d(grid, 3).flatten(2)[0].T
        assert (model.pictures.tokens(shown) - expected).abs().max() < 1e-4


def test_what_was_said_and_shown_changes_the_picture(model):
    one, other, shuffled = pixels(model.draw([told("add a star"), told("one blue square"), told("one blue square",
                                                                                                 "add a star")]))
    assert np.abs(one - other).max() > 2 and np.abs(other - shuffled).max() > 2
    (elsewhere,) = pixels(model.draw([replace(told("add a star"), context=(Pair("add a star", picture=picture(9)),))]))
    assert np.abs(one - elsewhere).max() > 2


def test_prompts_and_tries_of_one_batch_come_out_as_alone(model):
    requests = [told("add a star"), told("a", seed=4), told("one blue square", "two", "add one green star", seed=5),
                told("add a star", prompt="two blue squares", seed=6), PLAIN, replace(PLAIN, seed=8)]
    together = pixels(model.draw(requests))
    for request, expected in zip(requests, together):
        assert np.abs(pixels(model.draw([request]))[0] - expected).max() <= 1
    assert all((a == b).all() for a, b in zip(together, pixels(model.draw(requests)))), "the same, to the bit"


def test_steps_are_told_and_cancel(model):
    steps = []
    model.draw([told("add a star")], lambda at: steps.append((at.step, at.steps)))
    assert steps == [(k, 4) for k in (1, 2, 3, 4)]
    with pytest.raises(KeyboardInterrupt):
        model.draw([PLAIN], lambda at: (_ for _ in ()).throw(KeyboardInterrupt))


def test_texts_are_encoded_once(folder):
    fresh = ReflectDiT.from_folder(folder)
    first = fresh.draw([told("add a star")])[0].cost.text_encoder_calls
    assert first == 3 and fresh.draw([told("add a star", seed=9)])[0].cost.text_encoder_calls == 0


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "CMYK"])
def test_pictures_of_other_modes_are_seen_as_rgb(model, mode):
    shown = picture(2, mode, (50, 20))
    assert torch.equal(model.pictures.tokens(shown), model.pictures.tokens(shown.convert("RGB")))


def test_a_picture_that_says_it_is_turned_is_turned(model, tmp_path):
    shown = picture(2, size=(50, 20))
    exif = Image.Exif()
    exif[274] = 6
    shown.save(tmp_path / "a.png", exif=exif)
    turned = Image.open(tmp_path / "a.png")
    right = shown.transpose(Image.Transpose.ROTATE_270)
    assert torch.equal(model.pictures.tokens(turned), model.pictures.tokens(right))


def test_a_long_feedback_is_cut_and_said_so(folder):
    short = ReflectDiT.from_folder(folder, max_sequence_length=6)
    with pytest.warns(UserWarning, match="does not see the end"):
        short.draw([told("add a red star left of the blue circle")])


def test_an_empty_feedback_is_a_feedback(model):
    assert pixels(model.draw([told("")]))[0].shape == (32, 32, 3)


@pytest.mark.parametrize("request_, said", [
    (told("a", "a", "a", "a"), "4 context pairs; expected at most 3"),
    (replace(PLAIN, context=(Pair("add a star"),)), "has no picture"),
    (replace(PLAIN, width=33), "multiple of 4"), (replace(PLAIN, prompt=3), "prompt is 3"),
    (replace(PLAIN, context=(Pair(None, picture=picture(0)),)), "feedback is None")])
def test_what_cannot_be_drawn_is_said_before_anything_is(model, request_, said):
    with pytest.raises(UserError, match=said):
        model.draw([PLAIN, request_])


def test_plain_sana_cannot_be_told(tmp_path):
    plain = ReflectDiT.from_folder(write_tiny_sana(tmp_path, reflect=False))
    with pytest.raises(UserError, match="no corrector"):
        plain.draw([told("add a star")])


def test_a_checkpoint_beside_a_plain_model(tmp_path, folder, model):
    plain = write_tiny_sana(tmp_path / "plain", reflect=False)
    (tmp_path / "plain" / "image_encoder").mkdir()
    for file in (folder / "image_encoder").iterdir():
        (tmp_path / "plain" / "image_encoder" / file.name).write_bytes(file.read_bytes())
    index = json.loads((plain / "model_index.json").read_text())
    (plain / "model_index.json").write_text(json.dumps({**index, "image_encoder": ["transformers",
                                                                                 "SiglipVisionModel"]}))
    with_it = ReflectDiT.from_folder(plain, lora=folder / "transformer", image_tokens=16)
    assert np.array_equal(*pixels([*with_it.draw([told("add a star")]), *model.draw([told("add a star")])]))


@pytest.mark.parametrize("harm, said", [
    (lambda f: (f / "image_encoder" / "model.safetensors").unlink(), "has no weights"),
    (lambda f: (f / "vae" / "x.bin").write_bytes(b""), "is a pickle"),
    (lambda f: (f / "transformer" / "config.json").unlink(), "config.json: no such file"),
    (lambda f: (f / "model_index.json").write_text((f / "model_index.json").read_text().replace(
        "Gemma2Model", "T5EncoderModel")), "text_encoder is a T5EncoderModel"),
    (lambda f: (f / "reflect.json").write_text('{"options": {"image_tokens": 15}}'), "expected a square number"),
    (lambda f: (f / "reflect.json").write_text('{"options": {"colour": 15}}'), "no option 'colour'"),
])
def test_a_folder_that_is_damaged(tmp_path, harm, said):
    folder = write_tiny_sana(tmp_path)
    harm(folder)
    with pytest.raises(UserError, match=said):
        ReflectDiT.from_folder(folder)
