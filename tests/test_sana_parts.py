"""Components of a SANA model from elsewhere, and a checkpoint in the place of its transformer."""

import json
import shutil

import numpy as np
import pytest
import torch
from aligned import aligned
from test_reflect_dit_pipeline import PLAIN, change, picture
from tiny_flux import write_tiny_flux
from tiny_sana import write_tiny_sana

from reflect_core.generators.reflect_dit.folder import load_components
from reflect_core.generators.reflect_dit.pipeline import ReflectDiT
from reflect_core.generators.reflect_dit.sources import find_sources
from reflect_core.presets.choice import ModelChoice
from reflect_core.types import UserError

COMPONENTS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler", "image_encoder")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_sana(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return write_tiny_sana(tmp_path_factory.mktemp("other"), seed=1)


def drawn(generator):
    return np.asarray(aligned(generator).draw([PLAIN])[0].picture)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", COMPONENTS)
def test_any_component_from_a_folder(folder, other, name, whole):
    where = other if whole else other / name
    made = ReflectDiT.from_folder(folder, parts={name: where})
    own, theirs = load_components(folder), load_components(other)
    for part in made.parts:
        source = theirs if part == name else own
        state = source[part].state_dict()
        assert all(torch.equal(tensor, state[key]) for key, tensor in made.parts[part].state_dict().items()), part
    context = (theirs if name == "transformer" else own)["context"]
    assert torch.equal(made.context.clip_projection.linear_1.weight, context.clip_projection.linear_1.weight)
    assert find_sources(folder, parts={name: where})[name].folder == other / name
    assert drawn(made).shape == (32, 32, 3)


def test_a_tokenizer_of_its_own_class(folder, tmp_path):
    place = shutil.copytree(folder / "tokenizer", tmp_path / "tokenizer")
    made, plain = ReflectDiT.from_folder(folder, parts={"tokenizer": place}), ReflectDiT.from_folder(folder)
    assert np.array_equal(drawn(made), drawn(plain))


def test_a_checkpoint_needs_no_transformer_beside_it(folder, other, tmp_path):
    bare = shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("transformer"))
    released = other / "transformer"
    for how in ({"lora": released}, {"parts": {"transformer": released}}, {"lora": other}):
        made = ReflectDiT.from_folder(bare, **how)
        assert made.max_context == 3
        assert np.array_equal(drawn(made), drawn(ReflectDiT.from_folder(folder, lora=released)))
    with pytest.raises(UserError, match="config.json: no such file; expected the config of a SANA transformer"):
        ReflectDiT.from_folder(bare)


def test_what_is_not_read_is_no_part_of_the_fingerprint(folder, other, tmp_path):
    bare = shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("transformer"))
    one, two = (ModelChoice(str(where), lora=str(other / "transformer")) for where in (folder, bare))
    assert one.fingerprint() == two.fingerprint() != ModelChoice(str(folder)).fingerprint()
    assert two.in_context and ModelChoice(str(bare), parts={"transformer": str(other)}).policy == "reflect_dit"
    plain = write_tiny_sana(tmp_path / "plain", reflect=False)
    assert ModelChoice(str(folder), parts={"transformer": str(plain)}).policy == "best_of_n"


def test_plain_sana_in_the_place_of_reflect_dit_sees_nothing(folder, tmp_path):
    plain = write_tiny_sana(tmp_path, reflect=False, seed=2)
    made = ReflectDiT.from_folder(folder, parts={"transformer": plain})
    assert made.max_context == 0 and "image_encoder" not in made.parts
    assert np.array_equal(drawn(made), drawn(ReflectDiT.from_folder(folder, parts={"transformer": plain / "transformer"
                                                                                   })))


@pytest.mark.parametrize("name, broken, said", [
    ("decoder", lambda f: f, "a SANA model has no such component; expected one of transformer, vae, text_encoder"),
    ("vae", lambda f: f / "vae" / "config.json", "is a file; a SANA model's components are folders"),
    ("vae", lambda f: f / "nothing", "no such folder; a SANA model's components are folders"),
    ("vae", lambda f: f / "text_encoder", "is of a .*Gemma2Model.*; expected AutoencoderDC as vae"),
    ("text_encoder", lambda f: write_tiny_flux(f.parent / "flux"), "text_encoder is a CLIPTextModel.*SANA family"),
    ("text_encoder", lambda f: change(f / "text_encoder", hidden_size=16), "caption_channels is 24, and the model's t"),
    ("image_encoder", lambda f: change(f / "image_encoder", hidden_size=16), "vision_feature_dim is 20, and the mod"),
    ("scheduler", lambda f: f / "vae", "scheduler_config.json: no such file"),
    ("tokenizer", lambda f: f / "vae", "tokenizer_config.json: no such file"),
    ("transformer", lambda f: f / "vae", "is of a AutoencoderDC; expected SanaTransformer2DModel as transformer"),
    ("vae", lambda f: write_tiny_sana(f.parent / "plain", reflect=False) / "transformer",
      "is of a SanaTransformer2DModel; expected AutoencoderDC as vae")])
def test_what_is_no_component_of_this_model(folder, tmp_path, name, broken, said):
    copy = shutil.copytree(folder, tmp_path / "copy")
    where = broken(copy)
    with pytest.raises(UserError, match=said):
        ReflectDiT.from_folder(folder, parts={name: copy / name if where is None else where})


def test_two_transformers(folder, other):
    with pytest.raises(UserError, match="each is a whole transformer; expected one of them"):
        ReflectDiT.from_folder(folder, lora=other / "transformer", parts={"transformer": other})


def test_a_part_that_is_half_a_download(folder, tmp_path):
    copy = shutil.copytree(folder / "vae", tmp_path / "vae")
    file = copy / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="is not a whole safetensors file"):
        find_sources(folder, parts={"vae": copy})


def test_the_picture_encoder_of_a_model_that_sees_is_found_beside_its_checkpoint(folder, tmp_path):
    plain = write_tiny_sana(tmp_path / "plain", reflect=False)
    checkpoint = shutil.copytree(folder / "transformer", tmp_path / "checkpoint")
    with pytest.raises(UserError, match="image_encoder: no such folder; expected SigLIP's"):
        find_sources(plain, checkpoint)
    shutil.copytree(folder / "image_encoder", checkpoint / "image_encoder")
    assert find_sources(plain, checkpoint)["image_encoder"].folder == checkpoint / "image_encoder"
    made = ReflectDiT.from_folder(plain, lora=checkpoint, image_tokens=16)
    assert made.pictures.tokens(picture(0)).shape == (16, 20)
    config = json.loads((checkpoint / "config.json").read_text())
    assert made.context.clip_projection.linear_1.in_features == config["vision_feature_dim"]
