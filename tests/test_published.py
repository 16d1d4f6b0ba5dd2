"""Published sets: found where they belong, else told what is missing."""

from pathlib import Path

import pytest

from reflect_core.presets import locate as locating
from reflect_core.presets import published
from reflect_core.presets.load import preset_names
from reflect_core.presets.locate import Located, NotHere, locate
from reflect_core.presets.published import how_to_get, published_names
from reflect_core.presets.roots import Roots
from reflect_core.types import UserError


@pytest.fixture(autouse=True)
def no_cache(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "no cache"))


def put(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


@pytest.mark.parametrize("name", published_names())
def test_what_is_missing_is_told_with_size_licence_and_place(name, tmp_path):
    said = how_to_get(name, tmp_path)
    assert str(tmp_path / "diffusers") in said and "GB" in said and "licen" in said.lower()
    assert f'download {name} --to "{tmp_path}"' in said
    assert published.PUBLISHED[name].small in said and published.PUBLISHED[name].small in preset_names()


def test_both_parts_must_be_there(tmp_path):
    roots = Roots([tmp_path])
    for missing in ("FLUX.1-dev", "FLUX-Corrector"):
        with pytest.raises(NotHere, match=missing):
            locate("flux-corrector", roots)
        index = put(tmp_path / "diffusers" / "FLUX.1-dev" / "model_index.json")
    mine = put(tmp_path / "mine.safetensors")
    assert locate("flux-corrector", roots, mine) == Located(index.parent, mine)
    lora = put(tmp_path / "loras" / "FLUX-Corrector" / "pytorch_lora_weights.safetensors")
    assert locate("flux-corrector", roots) == Located(index.parent, lora)


def test_a_set_of_three_parts_is_found_by_the_folder_of_its_checkpoint(tmp_path):
    base = put(tmp_path / "Sana_1600M_1024px_MultiLing_diffusers" / "model_index.json").parent
    checkpoint = put(tmp_path / "reflect-dit" / "config.json").parent
    with pytest.raises(NotHere, match="missing: google/siglip"):
        locate("reflect-dit", Roots([tmp_path]))
    assert "siglip" in how_to_get("reflect-dit", tmp_path)
    eye = put(checkpoint / "image_encoder" / "config.json").parent
    assert locate("reflect-dit", Roots([tmp_path])) == Located(base, checkpoint, {"image_encoder": eye})


@pytest.mark.parametrize("name, folder", [("kontext", "FLUX.1-Kontext-dev"),
                                          ("qwen-image-edit", "Qwen-Image-Edit-2509")])
def test_an_editor_has_no_corrector_beside_it(name, folder, tmp_path):
    with pytest.raises(NotHere, match=folder):
        locate(name, Roots([tmp_path]))
    index = put(tmp_path / folder / "model_index.json")
    assert locate(name, Roots([tmp_path])) == Located(index.parent)
    # One that was asked for is handed on, for the editor to refuse it.
    mine = put(tmp_path / "mine.safetensors")
    assert locate(name, Roots([tmp_path]), mine) == Located(index.parent, mine)


def test_a_family_that_there_is_no_generator_of_says_so_before_anybody_downloads_it(tmp_path, monkeypatch):
    for module in (published, locating):
        monkeypatch.setattr(module, "FAMILIES", {})
    assert "cannot load 'reflect-dit' yet" in how_to_get("reflect-dit", tmp_path)
    with pytest.raises(NotHere, match="cannot load 'reflect-dit' yet"):
        locate("reflect-dit", Roots())


def test_a_set_that_there_is_not():
    with pytest.raises(UserError, match="flux-corrector"):
        how_to_get("flux-3", Path("models"))
