"""ReflectDiT as a generator: equal to diffusers' SanaPipeline without context, the same in a batch as alone."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from aligned import aligned
from diffusers import DPMSolverMultistepScheduler, SanaPipeline
from PIL import Image
from safetensors.torch import load_file
from tiny_sana import REFLECT, write_tiny_sana
from transformers import SiglipConfig, SiglipModel
from transformers.utils.logging import enable_propagation

from reflect_core.generators import preview
from reflect_core.generators.reflect_dit.cached import denoise
from reflect_core.generators.reflect_dit.checkpoint import STEM
from reflect_core.generators.reflect_dit.context import Pairs as Pairs_
from reflect_core.generators.reflect_dit.encoding import Texts, instruction
from reflect_core.generators.reflect_dit.pipeline import ReflectDiT
from reflect_core.generators.reflect_dit.transformer import reflect_forward
from reflect_core.report import html_page
from reflect_core.search import ReflectDiTSearch, load, start
from reflect_core.types import Pair, Request, UserError, Verdict

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
    # By Pillow: in transformers 5 the plain name may be torchvision's.
    kind = getattr(transformers, "SiglipImageProcessorPil", None) or transformers.SiglipImageProcessor
    processor = kind(size={"height": 48, "width": 48})
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


def test_whatever_does_not_change_is_made_once(folder, model):
    """Two tries in one batch, a third in a later one, a fourth with one pair more: what is new is made, by itself."""
    fresh, made = ReflectDiT.from_folder(folder), []
    parts = {"text": fresh.parts["text_encoder"], "picture": fresh.parts["image_encoder"],
             "adapted": fresh.context.clip_projection, "said": fresh.context.reflection_text_projection,
             "prompt": fresh.transformer.caption_projection, "context": fresh.context.reflection_transformer[0],
             "keys": fresh.transformer.transformer_blocks[0].attn2.to_k}
    for name, part in parts.items():
        part.register_forward_hook(lambda _, given, out, name=name: made.append(name))

    def counts(*requests):
        made.clear()
        drawn = fresh.draw(requests)
        return pixels(drawn), {name: made.count(name) for name in parts}
    one, other = told("add a star"), told("add a star", seed=9)
    together, first = counts(one, other)
    # Prompts are "a red circle" and the empty one. Of rows with feedback and of those without there are a call of the
    # context transformer, and one of its keys a step.
    steps = {"context": 2, "keys": 4 * 2}
    assert first == {"text": 3, "picture": 1, "adapted": 1, "said": 1, "prompt": 2, "context": 2, "keys": 2 + 4 * 2}
    assert fresh.draw([one])[0].cost.text_encoder_calls == 0
    again, later = counts(told("add a star", seed=11))
    assert later == {**dict.fromkeys(parts, 0), **steps}
    more, last = counts(told("add a star", "one blue star", seed=11))
    assert last == {**dict.fromkeys(parts, 1), "prompt": 0, **steps}
    # The same as with nothing kept, to the bit.
    requests = [one, other], [told("add a star", seed=11)], [told("add a star", "one blue star", seed=11)]
    for mine, batch in zip((together, again, more), requests):
        for a, b in zip(mine, pixels(ReflectDiT.from_folder(folder).draw(batch))):
            assert (a == b).all()


def test_pictures_of_other_modes_are_seen(model):
    shown = picture(2, "RGBA", (50, 20))
    shown.putalpha(0)
    assert torch.equal(model.pictures.tokens(shown), model.pictures.tokens(Image.new("RGB", (50, 20), "white")))


def test_a_picture_that_says_it_is_turned_is_turned(model, tmp_path):
    shown = picture(2, size=(50, 20))
    exif = Image.Exif()
    exif[274] = 6
    shown.save(tmp_path / "a.png", exif=exif)
    turned = Image.open(tmp_path / "a.png")
    right = shown.transpose(Image.Transpose.ROTATE_270)
    assert torch.equal(model.pictures.tokens(turned), model.pictures.tokens(right))


def test_a_long_feedback_is_cut_behind_a_word_and_noted(folder):
    short = ReflectDiT.from_folder(folder, max_sequence_length=6)
    with pytest.warns(UserWarning, match="does not see the end"):
        (drawn,) = short.draw([told("add a red star left of the blue circle", "one blue star")])
    assert drawn.notes == ("the text encoder takes 6 tokens; of the feedback it did not see 'of the blue circle'",)
    (same,) = short.draw([told("add a red star left", "one blue star")])
    assert same.notes == () and same.picture.tobytes() == drawn.picture.tobytes()


def test_words_are_never_cut_in_the_middle():
    """By a tokenizer that makes several tokens of a word, with a prefix and without."""
    class Letters:
        padding_side = "right"

        def __call__(self, text, verbose=True, **_):
            return type("Ids", (), {"input_ids": [0, *map(ord, text.replace(" ", ""))]})

        def encode(self, text):
            return self(text).input_ids

    texts = Texts(Letters(), None, 9, 4, None)
    with pytest.warns(UserWarning, match="'  circles'"):
        assert texts.whole_words("add two  circles") == "add two"
    assert texts.whole_words("add two") == "add two" and texts.whole_words("") == ""
    with pytest.warns(UserWarning):
        assert texts.whole_words("unbelievable") == ""
    with pytest.warns(UserWarning):
        assert texts.whole_words("add one star", "fix: ") == "add one"


def test_a_note_is_on_the_record_and_on_the_page(folder, tmp_path):
    """The policy asks, the feedback is too long, and what was not heard is found again after a resume."""
    short = ReflectDiT.from_folder(folder, max_sequence_length=6)
    with pytest.warns(UserWarning), start(PLAIN, ReflectDiTSearch(2), short, Refuses(), Says(
            "add a red star left of the blue circle"), folder=tmp_path / "run") as stepper:
        stepper.run()
    _, run = load(tmp_path / "run")
    assert run.candidates[0].notes == () and "of the blue circle" in run.candidates[1].notes[0]
    assert "it did not see" in html_page(run)


class Refuses:
    def judge(self, prompt, pictures):
        return [Verdict(0.5, False)] * len(pictures)


class Says:
    def __init__(self, words):
        self.words = words

    def reflect(self, prompt, pictures, verdicts):
        return [self.words] * len(pictures)


def latents(model, requests):
    return model._sample(requests, *model.inputs.encode([requests]))


@torch.no_grad()
def test_latents_of_one_batch_are_those_alone(model):
    """Before they are rounded to grey levels."""
    requests = [told("add a star"), told("a", seed=4), told("one blue square", "two", "add one green star", seed=5)]
    together = latents(model, requests)
    for request, expected in zip(requests, together):
        assert (latents(model, [request])[0] - expected).abs().max() < 1e-5


def test_pictures_or_words_alone_can_be_seen(model):
    """Then what is not seen makes no difference; what is kept of texts is shared."""
    other = replace(told("add a star"), context=(Pair("add a star", picture=picture(9)),))
    words, pictures = model.with_options(see="words"), model.with_options(see="pictures")
    assert words.texts is model.texts and model.options.see == "both"
    seen = {name: pixels(view.draw([told("add a star"), other, told("one star")])) for name, view in (
        ("words", words), ("pictures", pictures), ("both", model))}
    assert (seen["words"][0] == seen["words"][1]).all() and (seen["words"][0] != seen["words"][2]).any()
    assert (seen["pictures"][0] == seen["pictures"][2]).all() and (seen["pictures"][0] != seen["pictures"][1]).any()
    assert (seen["both"][0] != seen["words"][0]).any() and (seen["both"][0] != seen["pictures"][0]).any()
    for changes, said in (({"see": "nothing"}, "expected both, words or pictures"), ({"steps": 1}, "no option")):
        with pytest.raises(UserError, match=said):
            model.with_options(**changes)


@torch.no_grad()
def test_a_first_picture_can_be_drawn_with_a_dropped_context(folder, model):
    """As the plain forward draws it over zero vectors with the official mask; a batch is as alone."""
    dropped = ReflectDiT.from_folder(folder, no_context="dropped")
    requests = [PLAIN, replace(PLAIN, seed=8, prompt="two blue squares left of a star")]
    together = latents(dropped, requests)
    assert (together - latents(model, requests)).abs().max() > 1e-3
    for request, expected in zip(requests, together):
        assert (latents(dropped, [request])[0] - expected).abs().max() < 1e-5
    (unguided,) = dropped.draw([replace(PLAIN, guidance=1.0)])
    assert unguided.cost.denoiser_evaluations == 4
    # The first step, by hand.
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    words, _ = dropped.texts.states("a red circle", dropped.inputs.instruction)
    pairs = Pairs_(torch.zeros(0, 16, 20), torch.zeros(0, 1, 24), torch.zeros(0, 1), (None,))
    when = torch.tensor([900.0])
    by_hand = reflect_forward(dropped.transformer, dropped.context, noise, words[None], when,
                              torch.ones(1, len(words)), pairs)
    made = dropped._prepare(when / dropped.transformer.config.timestep_scale,
                            dropped.inputs.encode([[replace(PLAIN, guidance=1.0)]])[0], "cpu")
    assert torch.allclose(denoise(dropped.transformer, made, noise, 0), by_hand, atol=1e-5)


@pytest.mark.parametrize("decoded", [0, 128 * 128])
def test_previews_come_after_every_step_and_only_when_asked_for(model, monkeypatch, decoded):
    monkeypatch.setattr(preview, "DECODED", decoded)
    shown = []
    (drawn,) = model.draw([told("add a star")], lambda at: shown.append(at.preview()))
    assert len(shown) == 4 and all(isinstance(p, Image.Image) and p.mode == "RGB" for one in shown for p in one)
    if decoded:
        # After the last step nothing is left to remove.
        assert np.abs(np.asarray(shown[-1][0]).astype(int) - np.asarray(drawn.picture)).max() <= 1
    else:
        assert {p.size for one in shown for p in one} == {(8, 8)}


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
    (lambda f: (f / "reflect.json").write_text('{"options": {"image_tokens": 25}}'), "a divisor of the"),
    (lambda f: (f / "transformer" / f"{STEM}.safetensors").write_bytes(b"x" * 99), "not a whole safetensors file"),
    (lambda f: (f / "transformer" / f"{STEM}.safetensors").rename(f / "transformer" / f"{STEM}.bin"), "with --lora"),
    (lambda f: change(f / "image_encoder", hidden_size=768), "vision_feature_dim is 20, and the model's picture enc"),
    (lambda f: change(f / "text_encoder", hidden_size=16), "its caption_channels is 24, and the model's text encoder"),
    (lambda f: change(f / "vae", latent_channels=32), "its in_channels is 4, and the model's autoencoder makes 32"),
    (lambda f: change(f / "image_encoder", num_hidden_layers=1), r"its weights have \S*encoder.layers.1.* more, which"),
    (lambda f: change(f / "transformer", reflection=None), "clip_norm.weight and 28 more, which"),
])
def test_a_folder_that_is_damaged(tmp_path, harm, said, monkeypatch):
    folder = write_tiny_sana(tmp_path)
    harm(folder)
    if "its weights have" not in said and "28 more" not in said:
        monkeypatch.setattr("reflect_core.generators.reflect_dit.folder.load_part", None)  # before any weight is read
    with pytest.raises(UserError, match=said):
        ReflectDiT.from_folder(folder)


def change(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


@pytest.mark.parametrize("change_, said", [
    (lambda f: change(f / "transformer", **REFLECT), "clip_norm.weight is missing"),
    (lambda f: (f / "transformer" / "config.json").write_text("{}"), "says nothing of reflection")])
def test_plain_sana_is_no_reflect_dit(tmp_path, folder, change_, said):
    """Under a config of Reflect-DiT, and as a checkpoint on top of another model; the message names its folder."""
    plain = write_tiny_sana(tmp_path / "plain", reflect=False)
    change_(plain)
    with pytest.raises(UserError, match=said) as told:
        ReflectDiT.from_folder(folder, lora=plain / "transformer")
    assert str(plain / "transformer") in str(told.value)


@pytest.mark.parametrize("shards", [1, 2])
def test_a_checkpoint_in_bin_goes_on_top_of_a_model(tmp_path, folder, model, shards):
    """As its authors' training saves it; a missing shard is told before any weight is read."""
    released = tmp_path / "dit" / "transformer"
    shutil.copytree(folder / "transformer", released)
    weights = load_file(released / f"{STEM}.safetensors")
    (released / f"{STEM}.safetensors").unlink()
    names = [f"{STEM}.bin"] if shards == 1 else [f"{STEM}-{k}.bin" for k in range(shards)]
    for k, name in enumerate(names):
        torch.save({key: weights[key] for key in sorted(weights)[k::shards]}, released / name)
    if shards > 1:
        where = {key: names[k % shards] for k, key in enumerate(sorted(weights))}
        (released / f"{STEM}.bin.index.json").write_text(json.dumps({"weight_map": where}))
    with_it = ReflectDiT.from_folder(folder, lora=released, image_tokens=16)
    own = ReflectDiT.from_folder(folder, image_tokens=16)
    both = [aligned(one).draw([told("add a star")])[0] for one in (with_it, own)]
    assert np.array_equal(*pixels(both))
    (released / names[-1]).unlink()
    with pytest.raises(UserError, match="has no weights" if shards == 1 else "no such file, or an empty one"):
        ReflectDiT.from_folder(folder, lora=released, image_tokens=16)


def test_the_eyes_of_a_whole_siglip(tmp_path, folder, caplog):
    """What comes with google/siglip-large-patch16-384: eyes and ears in one folder."""
    whole = write_tiny_sana(tmp_path)
    eyes = ReflectDiT.from_folder(whole).parts["image_encoder"]
    both = SiglipModel(SiglipConfig(vision_config=eyes.config.to_dict(), text_config={
        "hidden_size": 20, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "vocab_size": 30}))
    both.vision_model.load_state_dict({k.removeprefix("vision_model."): v for k, v in eyes.state_dict().items()})
    expected = ReflectDiT.from_folder(whole).pictures.tokens(picture(1))
    shutil.rmtree(whole / "image_encoder")
    both.save_pretrained(whole / "image_encoder")
    enable_propagation()  # of transformers' logger, or caplog would see nothing of it
    caplog.clear()
    assert torch.equal(ReflectDiT.from_folder(whole).pictures.tokens(picture(1)), expected)
    assert "text_model" not in caplog.text


def test_a_step_is_asked_of_the_model_when_it_was_in_training(model):
    """The published schedule (section 5): 20 steps, shift 3."""
    scheduler = DPMSolverMultistepScheduler.from_config(model.schedule_config)
    scheduler.set_timesteps(20)
    assert scheduler.timesteps.tolist() == [999, 982, 963, 944, 922, 899, 874, 847, 817, 785, 749, 710, 666, 617, 562,
                                            499, 428, 345, 249, 136]
    with pytest.raises(UserError, match="at most the 1000"):
        model.draw([replace(PLAIN, steps=1001)])
