"""FLUX.1 Kontext on a tiny folder: FluxKontextPipeline's pictures, batches, texts, costs, and what is refused."""

import io
import json
import shutil
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_editors import write_tiny_kontext

from reflect_core.generators.editors.kontext import FluxKontext
from reflect_core.generators.editors.options import KontextOptions
from reflect_core.presets.choice import ModelChoice
from reflect_core.presets.load import load_generator
from reflect_core.types import Pair, Request, UserError

PROMPT, FEEDBACK, TOLD = "a red circle", "add a star", "Add a star."
LENGTH = 12
pytestmark = pytest.mark.filterwarnings("ignore:CLIP sees", "ignore:T5 sees")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_kontext(tmp_path_factory.mktemp("kontext"))


@pytest.fixture(scope="module")
def editor(folder):
    return FluxKontext.from_folder(folder, keep=False)


def noise_picture(seed, width=32, height=32):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def plain(seed=0, **changes):
    return replace(Request(PROMPT, seed, 32, 32, 3, 2.5), **changes)


def edit(seed=0, picture=0, feedback=FEEDBACK, **changes):
    request = plain(seed, **changes)
    return replace(request, context=(Pair(feedback, picture=noise_picture(picture, request.width, request.height)),))


def pixels(drawn):
    return np.stack([np.asarray(d.picture) for d in drawn]).astype(int)


@pytest.mark.skipif(not hasattr(diffusers, "FluxKontextPipeline"), reason="this diffusers has no FluxKontextPipeline")
@pytest.mark.parametrize("size", [(32, 32), (48, 16)])
@pytest.mark.parametrize("true_cfg", [1.0, 2.5])
@pytest.mark.parametrize("with_picture", [True, False])
def test_it_is_diffusers_pipeline(folder, size, true_cfg, with_picture):
    width, height = size
    pipeline = diffusers.FluxKontextPipeline.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    editor = FluxKontext.from_folder(folder, keep=False, true_cfg_scale=true_cfg)
    requests = [(edit if with_picture else plain)(seed, width=width, height=height) for seed in (5, 6)]
    arguments = dict(prompt=[TOLD if with_picture else PROMPT] * 2, width=width, height=height, max_area=width * height,
                     num_inference_steps=3, guidance_scale=2.5, max_sequence_length=LENGTH)
    if with_picture:
        arguments |= dict(image=[r.context[0].picture for r in requests], _auto_resize=False)
    if true_cfg > 1:
        arguments |= dict(true_cfg_scale=true_cfg, negative_prompt=["", ""])
    for output in ("latent", "pil"):
        theirs = pipeline(**arguments, output_type=output,
                          generator=[torch.Generator().manual_seed(r.seed) for r in requests]).images
        if output == "latent":
            assert (torch.stack(editor.draw_latents(requests)) - theirs).abs().max() < 1e-5
    drawn = editor.draw(requests)
    assert drawn[0].picture.size == size and drawn[0].picture.mode == "RGB"
    assert np.abs(pixels(drawn) - np.stack([np.asarray(one) for one in theirs]).astype(int)).max() <= 1
    assert {d.cost.denoiser_evaluations for d in drawn} == {3 if true_cfg == 1 else 6}
    assert [editor.evaluations(r) for r in requests] == [d.cost.denoiser_evaluations for d in drawn]


def test_at_its_own_size_a_picture_is_seen_as_it_is():
    """1024 x 1024 is among the sizes between which diffusers' pipeline chooses, and is ours for it, too."""
    editor = FluxKontext.__new__(FluxKontext)
    editor.patch = 16
    big = Image.new("RGB", (1024, 1024))
    assert editor._size(big, Request(PROMPT, 0, 1024, 1024)) == (1024, 1024)
    for size in ((1328, 800), (2048, 2048), (700, 3000)):
        width, height = editor._size(Image.new("RGB", size), Request(PROMPT, 0, 1024, 1024))
        assert width % 16 == height % 16 == 0 and 0.9 < width * height / 1024**2 < 1.1
        assert abs(width / height / (size[0] / size[1]) - 1) < 0.05


def test_rows_equal_singles_and_keep_their_order(editor):
    requests = [plain(1), edit(2, 1), plain(3, steps=2), edit(4, 2), edit(5, 3, guidance=1.0), edit(2, 1, "remove it"),
                plain(6, width=16)]
    together = editor.draw_latents(requests)
    for request, row in zip(requests, together):
        single = editor.draw_latents([request])[0]
        assert single.shape == row.shape and (single - row).abs().max() < 1e-5
    assert len({tuple(row.flatten()[:4].tolist()) for row in together}) == len(requests)


def test_the_same_requests_come_out_bit_for_bit(folder, editor):
    requests = [plain(1), edit(2, 1), edit(3, 2), plain(4)]
    cold = FluxKontext.from_folder(folder, keep=False, text_cache=1, picture_cache=1)
    first = editor.draw_latents(requests)
    for again in (editor.draw_latents(requests), cold.draw_latents(requests), cold.draw_latents(requests)):
        assert all(torch.equal(a, b) for a, b in zip(first, again))


def test_the_picture_and_the_words_matter(editor):
    base, picture, words, guidance = editor.draw_latents(
        [edit(0, 1), edit(0, 2), edit(0, 1, "remove it"), edit(0, 1, guidance=4.0)])
    assert all((base - other).abs().max() > 1e-4 for other in (picture, words, guidance))


def test_clip_is_given_the_edits_alone(folder):
    """It sees 77 tokens; T5 has room for the target, too."""
    told, given = FluxKontext.from_folder(folder, target="always"), {}
    for name in ("pooled", "states"):
        make = getattr(told.texts, name)
        setattr(told.texts, name, lambda text, name=name, make=make: given.update({name: text}) or make(text))
    told.draw_latents([edit(0)])
    short = "Add a star. Keep everything else unchanged."
    assert given == {"pooled": short, "states": f"{short} The picture should then show this: {PROMPT}"}


def test_texts_and_pictures_are_encoded_once(folder):
    fresh = FluxKontext.from_folder(folder)
    calls = [d.cost.text_encoder_calls for d in fresh.draw([plain(0), plain(1), edit(2), edit(3)])]
    assert calls == [2, 0, 2, 0]
    asked = []
    fresh.places.manager = lambda name, pixels: asked.append((name, pixels)) or "cpu"
    fresh.draw([edit(4)])
    assert asked == [("transformer", 2 * 32 * 32), ("vae", 32 * 32)], "texts and flawed picture are kept"


def test_every_part_is_asked_for_before_it_is_used(folder, editor):
    before = editor.draw([edit(7)])
    fresh, asked = FluxKontext.from_folder(folder, keep=False), []
    fresh.places.manager = lambda name, pixels: asked.append(name) or "cpu"
    after = fresh.draw([edit(7)])
    assert asked == ["text_encoder", "text_encoder_2", "vae", "transformer", "vae"]
    assert after[0].picture.tobytes() == before[0].picture.tobytes()


def test_each_part_has_one_turn_however_many_batches(folder):
    """Whoever moves tens of gigabytes for it moves them once."""
    fresh, asked = FluxKontext.from_folder(folder, max_batch=1), []
    fresh.places.manager = lambda name, pixels: asked.append(name) or "cpu"
    steps = []
    requests = [plain(1), edit(2, 1, "add it"), edit(3, 2, "move it", steps=2)]
    drawn = fresh.draw(requests, lambda at: steps.append(at.step))
    assert [name for name, before in zip(asked, [None, *asked]) if name != before] == [
        "text_encoder", "text_encoder_2", "vae", "transformer", "vae"]
    assert steps == [1, 2, 3, 1, 2, 3, 1, 2] and [d.cost.denoiser_evaluations for d in drawn] == [3, 3, 2]
    assert [d.cost.text_encoder_calls for d in drawn] == [2, 2, 2] and all(d.cost.seconds > 0 for d in drawn)


def test_a_photograph_on_its_side_is_seen_upright(editor):
    lying = noise_picture(1, 48, 32)
    data = io.BytesIO()
    exif = Image.Exif()
    exif[274] = 6  # a quarter turn clockwise
    lying.save(data, "PNG", exif=exif)
    tagged, upright = Image.open(data), lying.transpose(Image.Transpose.ROTATE_270)
    both = [replace(plain(1, width=32, height=48), context=(Pair("add it", picture=one),)) for one in (tagged, upright)]
    assert editor._size(tagged, both[0]) == (32, 48)
    assert torch.equal(*editor.draw_latents(both[:1]), *editor.draw_latents(both[1:]))


def test_a_callback_sees_each_step_and_may_cancel(editor):
    seen = []
    drawn = editor.draw([edit(1), edit(2)], lambda at: seen.append((at.step, at.steps, at.preview())))
    assert [(step, steps) for step, steps, _ in seen] == [(1, 3), (2, 3), (3, 3)]
    # After the last step nothing is left to remove.
    assert np.abs(np.asarray(seen[-1][2][0]).astype(int) - np.asarray(drawn[0].picture)).max() <= 1

    def cancel(at):
        if at.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        editor.draw([edit(1)], cancel)
    assert editor.draw([edit(1), edit(2)])[0].picture.tobytes() == drawn[0].picture.tobytes()


def test_what_was_left_out_is_noted(folder):
    short = FluxKontext.from_folder(folder, max_words=3)
    notes = [d.notes for d in short.draw([edit(0, feedback="add a star\nmove it"), edit(0)])]
    assert notes == [("the instruction takes 3 words; left out: Move it.",), ()]


def test_words_that_clip_and_t5_do_not_read_are_noted(editor):
    """A person may say them, or a judge of another program."""
    requests = [edit(0, feedback="\u628a\u5706\u5f62\u6539\u6210\u7ea2\u8272"), edit(0, feedback="\u00e9tends le ciel"),
                plain(prompt="\u043a\u0440\u0443\u0433")]
    notes = [one.notes for one in editor.draw(requests)]
    assert [len(n) for n in notes] == [1, 0, 1] and "Latin letters alone" in notes[0][0] and "\u628a" in notes[0][0]


def test_other_options_share_the_weights(editor):
    other = editor.with_options(target="always")
    assert other.transformer is editor.transformer and editor.options.target == "silent"
    assert not torch.equal(other.draw_latents([edit(0)])[0], editor.draw_latents([edit(0)])[0])
    with pytest.raises(UserError, match="text_cache"):
        editor.with_options(text_cache=1)


@pytest.mark.parametrize("change, word", [
    ({"target": "never"}, "'silent' or 'always'"), ({"keep": "no"}, "keep is 'no'"), ({"max_words": 0}, "max_words"),
    ({"max_batch": True}, "max_batch"), ({"true_cfg_scale": 0.5}, "true_cfg_scale"), ({"picture_cache": 0}, "picture")])
def test_options_say_what_they_expect(change, word):
    with pytest.raises(UserError, match=word):
        KontextOptions(**change)


def test_an_editor_is_not_its_own_base(folder):
    with pytest.raises(UserError, match="the editor itself"):
        load_generator(folder, base=str(folder))


@pytest.mark.parametrize("changes, word", [
    ({"text_join": "train"}, "no option 'text_join'"), ({"lora": "x.safetensors"}, "takes no corrector's LoRA"),
    ({"base": 3}, "option base is 3"), ({"base": "nowhere"}, "nowhere: is neither")])
def test_what_an_editor_does_not_take(folder, changes, word):
    with pytest.raises(UserError, match=word):
        load_generator(folder, **changes)


def test_requests_that_cannot_be_drawn(editor):
    with pytest.raises(UserError, match="try 32"):
        editor.draw([plain(width=30)])
    with pytest.raises(UserError, match="no picture"):
        editor.draw([plain(context=(Pair("add"),))])
    with pytest.raises(UserError, match="guidance is -1; expected a number of 0 or more; try 2.5, which this"):
        editor.draw_latents([plain(guidance=-1)])
    assert editor.draw([]) == []


def test_half_precision_draws(folder):
    half = FluxKontext.from_folder(folder, dtype=torch.bfloat16)
    assert pixels(half.draw([plain(), edit()])).shape == (2, 32, 32, 3)


def test_a_folder_that_is_not_whole(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "model")
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps({**index, "vae": ["diffusers", "AutoencoderDC"]}))
    with pytest.raises(UserError, match="vae is a AutoencoderDC"):
        load_generator(copy)
    (copy / "model_index.json").write_text(json.dumps(index))
    weights = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load_generator(copy)


def test_the_choice_knows_an_editor(folder):
    choice = ModelChoice(str(folder))
    assert choice.edits and choice.policy == "reflection_flow" and not ModelChoice("shapes-flux").edits


def test_the_model_that_draws_first_is_part_of_the_fingerprint(folder, tmp_path):
    base = shutil.copytree(folder, tmp_path / "base")
    choice = ModelChoice(str(folder), options={"base": str(base)})
    before = choice.fingerprint()
    file = base / "scheduler" / "scheduler_config.json"
    file.write_text(file.read_text() + " ")
    assert choice.fingerprint() != before
