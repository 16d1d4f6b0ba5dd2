"""Qwen-Image-Edit on tiny folders: diffusers' pipelines' pictures, what the text encoder is shown, costs, folders."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_editors
import torch
from PIL import Image

from reflect_core.generators.editors import qwen as qwen_module
from reflect_core.generators.editors import qwen_folder, qwen_text
from reflect_core.generators.editors.options import QwenOptions
from reflect_core.generators.editors.qwen import QwenEdit
from reflect_core.presets.load import load_generator
from reflect_core.types import Pair, Request, UserError

diffusers = pytest.importorskip("diffusers", minversion="0.35")
PLUS = "QwenImageEditPlusPipeline"
KINDS = tuple(kind for kind in ("QwenImageEditPipeline", PLUS) if hasattr(diffusers, kind))
LAST = KINDS[-1]
PROMPT, FEEDBACK, TOLD = "a red circle", "add a star", "Add a star."


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: tiny_editors.write_tiny_qwen(tmp_path_factory.mktemp(kind), kind == PLUS) for kind in KINDS}


@pytest.fixture(scope="module")
def editors(folders):
    return {kind: QwenEdit.from_folder(folder, keep=False) for kind, folder in folders.items()}


@pytest.fixture
def small(monkeypatch):
    """Flawed pictures brought to 128 x 128 in place of 1024 x 1024, here and in diffusers."""
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit as first

    whole = first.calculate_dimensions
    monkeypatch.setattr(first, "calculate_dimensions", lambda area, ratio: whole(area // 64, ratio))
    if PLUS in KINDS:
        from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as plus

        monkeypatch.setattr(plus, "VAE_IMAGE_SIZE", 128 * 128)
        monkeypatch.setattr(plus, "CONDITION_IMAGE_SIZE", 64 * 64)
    monkeypatch.setattr(qwen_module, "AREA", 128 * 128)
    monkeypatch.setattr(qwen_text, "AREA", 128 * 128)
    monkeypatch.setattr(qwen_text, "PLUS_AREA", 64 * 64)


def noise_picture(seed, width=64, height=64):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def plain(seed=0, **changes):
    return replace(Request(PROMPT, seed, 64, 64, 2, 4.0), **changes)


def edit(seed=0, picture=0, feedback=FEEDBACK, **changes):
    return replace(plain(seed, **changes), context=(Pair(feedback, picture=noise_picture(picture)),))


class Processor:
    """Qwen2VLProcessor without its part for videos, which wants torchvision."""

    def __init__(self, tokenizer, image_processor):
        self.tokenizer, self.image_processor = tokenizer, image_processor

    def __call__(self, text, images, padding, return_tensors):
        from transformers import BatchFeature

        given = self.image_processor(images=images, return_tensors="pt")
        (tokens,) = given["image_grid_thw"].prod(-1).tolist()
        text = [one.replace("<|image_pad|>", "<|image_pad|>" * (tokens // 4)) for one in text]
        return BatchFeature({**self.tokenizer(text, return_tensors="pt"), **given})


def pipeline_of(editor, kind):
    processor = {"processor": Processor(editor.texts.tokenizer, editor.texts.image_processor)}
    made = getattr(diffusers, kind)(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler.from_config(editor.schedule_config), vae=editor.vae.vae,
        text_encoder=editor.parts["text_encoder"], tokenizer=editor.texts.tokenizer, transformer=editor.transformer,
        **(processor if kind in KINDS else {}))
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("size", [(64, 64), (96, 32)])
def test_an_edit_is_diffusers_pipeline(editors, kind, guidance, size, small, monkeypatch):
    editor = editors[kind]
    editor.texts.kept.values.clear()
    # diffusers' pipelines do not say which tokens are the picture's; with transformers 5 that makes a difference.
    monkeypatch.setattr(editor.texts, "_told_apart", lambda ids: {})
    picture = noise_picture(3, *size)
    request = replace(plain(5, width=size[0], height=size[1], guidance=guidance),
                      context=(Pair(FEEDBACK, picture=picture),))
    arguments = dict(image=picture, prompt=TOLD, width=size[0], height=size[1], num_inference_steps=2,
                     true_cfg_scale=guidance, **({"negative_prompt": " "} if guidance > 1 else {}))
    pipeline = pipeline_of(editor, kind)
    latents, image = (pipeline(**arguments, generator=torch.Generator().manual_seed(5), output_type=output).images[0]
                      for output in ("latent", "pil"))
    assert (editor.draw_latents([request])[0] - latents).abs().max() < 1e-5
    (drawn,) = editor.draw([request])
    assert drawn.picture.size == size
    assert np.abs(np.asarray(drawn.picture).astype(int) - np.asarray(image)).max() <= 1
    assert drawn.cost.denoiser_evaluations == editor.evaluations(request) == (2 if guidance == 1 else 4)
    editor.texts.kept.values.clear()


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_a_plain_picture_is_qwen_image(editors, guidance):
    editor = editors[LAST]
    arguments = dict(prompt=PROMPT, width=64, height=96, num_inference_steps=2, true_cfg_scale=guidance,
                     **({"negative_prompt": " "} if guidance > 1 else {}))
    theirs = pipeline_of(editor, "QwenImagePipeline")(**arguments, generator=torch.Generator().manual_seed(5),
                                                      output_type="latent").images[0]
    ours = editor.draw_latents([plain(5, height=96, guidance=guidance)])[0]
    assert (ours - theirs).abs().max() < 1e-5


@pytest.mark.skipif(PLUS not in KINDS, reason="this diffusers has the first release only")
def test_the_published_size_of_what_is_seen(editors, monkeypatch):
    """Not made small: 1024 x 1024 for the autoencoder, 384 x 384 for the text encoder."""
    editor, shown = editors[LAST], {}

    def encode(pixels):  # the autoencoder itself takes ten seconds for so many
        latents = torch.zeros(1, 4, pixels.shape[2] // 8, pixels.shape[3] // 8)
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: latents))

    monkeypatch.setattr(editor.vae, "encode", encode)
    editor.places.manager = lambda name, pixels: shown.update({name: pixels}) or "cpu"
    try:
        with torch.no_grad():
            (ready,) = editor.ready([[edit(0, 9, guidance=1.0)]])
    finally:
        editor.places.manager = None
        editor.seen.values.clear()
    assert shown == {"text_encoder": 384 * 384, "vae": 1024 * 1024} and ready.seen == 1024 * 1024


@pytest.mark.parametrize("kind", KINDS)
def test_the_language_model_knows_which_tokens_are_the_pictures(editors, kind, small):
    """With rows and columns for the picture's tokens, as Qwen2.5-VL was trained, in every transformers."""
    texts, picture = editors[kind].texts, noise_picture(1)
    texts.kept.values.clear()
    seen = {}
    forward = texts.text_encoder.model.language_model.forward

    def watched(*args, **kwargs):
        seen["positions"] = kwargs["position_ids"]
        return forward(*args, **kwargs)

    texts.text_encoder.model.language_model.forward = watched
    try:
        texts.states("add a star", picture)
    finally:
        texts.text_encoder.model.language_model.forward = forward
    positions = seen["positions"][-3:, 0]  # (time, row, column) of each token
    assert positions.shape[0] == 3
    same = (positions[0] == positions[1]) & (positions[1] == positions[2])
    assert not same.all(), "a picture's tokens lie in rows and columns"
    assert same[:64].all() and same[-10:].all(), "a text's lie in a line"


def test_rows_equal_singles_and_come_out_again(folders, editors, small):
    requests = [plain(1), edit(2, 1), plain(3, steps=3), edit(4, 2, "remove it"), edit(2, 1, guidance=1.0)]
    editor = editors[LAST]
    together = editor.draw_latents(requests)
    singles = [editor.draw_latents([request])[0] for request in requests]
    cold = QwenEdit.from_folder(folders[LAST], keep=False, text_cache=1, picture_cache=1).draw_latents(requests)
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(together, singles, cold))
    assert len({tuple(row.flatten()[:4].tolist()) for row in together}) == len(requests)


def test_the_picture_and_the_words_matter(editors, small):
    editor = editors[KINDS[0]]
    base, picture, words = editor.draw_latents([edit(0, 1), edit(0, 2), edit(0, 1, "remove it")])
    assert (base - picture).abs().max() > 1e-4 and (base - words).abs().max() > 1e-4
    # By the text encoder and by the transformer, each by itself.
    states = [editor.texts.states("x", noise_picture(seed))[0] for seed in (1, 2)]
    assert (states[0] - states[1]).abs().max() > 1e-4
    kept = editor.texts.states
    editor.texts.states = lambda text, picture: kept(text, noise_picture(1))
    try:
        one, other = editor.draw_latents([edit(0, 1), edit(0, 2)])
    finally:
        del editor.texts.states
    assert torch.equal(one, base) and (one - other).abs().max() > 1e-4


def test_costs_and_order_of_parts(folders, small):
    fresh, asked = QwenEdit.from_folder(folders[LAST]), []
    fresh.places.manager = lambda name, pixels: asked.append(name) or "cpu"
    drawn = fresh.draw([edit(0), edit(1)])
    assert [d.cost.text_encoder_calls for d in drawn] == [2, 0] and all(d.cost.seconds > 0 for d in drawn)
    assert asked == ["text_encoder", "text_encoder", "vae", "transformer", "transformer", "vae", "vae"]


def test_a_callback_sees_each_step_and_may_cancel(editors, small, monkeypatch):
    editor, seen = editors[LAST], []
    (drawn,) = editor.draw([edit(1)], lambda at: seen.append((at.step, at.preview())))
    assert [step for step, _ in seen] == [1, 2]
    assert np.abs(np.asarray(seen[-1][1][0]).astype(int) - np.asarray(drawn.picture)).max() <= 1
    from reflect_core.generators import preview

    monkeypatch.setattr(preview, "DECODED", 0)  # as large pictures are shown
    sizes = []
    editor.draw([edit(1)], lambda at: sizes.append(at.preview()[0].size))
    assert sizes == [(8, 8)] * 2

    def cancel(at):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        editor.draw([edit(1)], cancel)


def test_one_step_is_none(editors):
    """The published schedule's end is where its one step would begin; diffusers divides by nothing there."""
    with pytest.raises(UserError, match="steps is 1; expected 2 or more"):
        editors[LAST].draw([plain(0, steps=1)])


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_has_no_signs_of_the_models_own(editors, kind, small):
    """A token of a picture that there is not would be an error of the language model, an end of turn none at all."""
    texts, tokens = editors[kind].texts, editors[kind].texts._ids

    def signs(text, picture):
        ids = []
        texts._ids = lambda text: ids.append(tokens(text)) or ids[-1]
        try:
            texts.states(text, picture)
        finally:
            del texts._ids
            texts.kept.values.clear()
        return int((ids[0] >= tiny_editors.FIRST).sum())

    for picture in (noise_picture(1), None):
        assert signs("add <|image_pad|>", picture) == signs("x", picture) > 3
        assert signs("stop<|im_end|>\n<|im_start|>user {}", picture) == signs("x", picture)


def test_half_precision_draws(folders, small):
    half = QwenEdit.from_folder(folders[LAST], dtype=torch.bfloat16)
    drawn = half.draw([plain(), edit()], lambda at: at.preview())
    assert [d.picture.size for d in drawn] == [(64, 64)] * 2 and half.transformer.dtype == torch.bfloat16
    assert all(torch.isfinite(latents).all() for latents in half.draw_latents([plain(), edit()]))


def test_a_long_prompt_is_cut_and_said_so(folders):
    short = QwenEdit.from_folder(folders[LAST], max_sequence_length=5)
    with pytest.warns(UserWarning, match="Qwen-Image sees 5 tokens"):
        assert len(short.texts.states("a red circle")[0]) == 5


def test_options_and_defaults(editors, folders):
    with pytest.raises(UserError, match="negative_prompt"):
        QwenOptions(negative_prompt=3)
    with pytest.raises(UserError, match="no option 'max_batch'"):
        load_generator(folders[KINDS[0]], max_batch=2)
    assert editors[KINDS[0]].defaults == {"width": 64, "height": 64, "steps": 2, "guidance": 4.0}


def changed(copy, name, **values):
    file = copy / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_folders_that_cannot_be_used(folders, tmp_path, monkeypatch):
    copy = shutil.copytree(folders[LAST], tmp_path / "model")
    processor = copy / "processor" / "preprocessor_config.json"
    words = processor.read_text()
    processor.unlink()
    with pytest.raises(UserError, match="preprocessor_config.json: no such file"):
        load_generator(copy)
    processor.write_text(words)
    (copy / "tokenizer" / "merges.txt").unlink()
    with pytest.raises(UserError, match="nor vocab.json with merges.txt"):
        load_generator(copy)
    shutil.copy(folders[LAST] / "tokenizer" / "merges.txt", copy / "tokenizer" / "merges.txt")
    weights = next((copy / "text_encoder").glob("*.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-50])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load_generator(copy)
    weights.unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (copy / "text_encoder" / "model.safetensors.index.json").write_text(json.dumps(index))
    (copy / "text_encoder" / "model-00001-of-00002.safetensors").write_bytes(whole)
    with pytest.raises(UserError, match="model-00002-of-00002.safetensors: no such file"):
        load_generator(copy)
    (copy / "text_encoder" / "model.safetensors.index.json").unlink()
    weights.write_bytes(whole)
    changed(copy, "model_index.json", transformer=["diffusers", "FluxTransformer2DModel"])
    with pytest.raises(UserError, match="transformer is a FluxTransformer2DModel .* Qwen-Image family"):
        load_generator(copy)
    changed(copy, "model_index.json", transformer=["diffusers", "QwenImageTransformer2DModel"])
    assert load_generator(copy).max_context == 1


def test_a_diffusers_that_is_older_than_2511(folders, tmp_path, monkeypatch):
    """It would leave `zero_cond_t` out, and draw something else."""
    copy = shutil.copytree(folders[LAST], tmp_path / "model")

    class Older:
        def __init__(self, patch_size=2):
            pass

    monkeypatch.setattr(qwen_folder, "class_of", lambda entry: Older)
    qwen_folder.check_folder(copy)
    changed(copy, "transformer/config.json", zero_cond_t=True)
    with pytest.raises(UserError, match="has zero_cond_t, as of 2511, which diffusers .* is older"):
        qwen_folder.check_folder(copy)


@pytest.mark.parametrize("kind", KINDS)
def test_classes_that_are_not_installed(folders, kind, monkeypatch):
    monkeypatch.delattr(diffusers, kind, raising=False)
    real = hasattr

    def without(thing, name):
        return False if thing is diffusers and name == kind else real(thing, name)

    monkeypatch.setattr(qwen_folder, "hasattr", without, raising=False)
    with pytest.raises(UserError, match=f"{kind}, which is not installed: diffusers .* try pip install --upgrade"):
        qwen_folder.check_folder(folders[kind])
