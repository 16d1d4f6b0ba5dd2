"""Published sets: found where they belong, else told what is missing."""

import pytest

from reflect_core.presets import published
from reflect_core.presets.load import preset_names
from reflect_core.presets.published import find_published, how_to_get, published_names
from reflect_core.types import UserError


def put(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


@pytest.mark.parametrize("name", published_names())
def test_what_is_missing_is_told_with_size_licence_and_place(name, tmp_path):
    said = how_to_get(name, tmp_path)
    assert str(tmp_path / "diffusers") in said and "GB" in said and "licen" in said.lower()
    assert published.PUBLISHED[name].small in said and published.PUBLISHED[name].small in preset_names()


def test_both_parts_must_be_there(tmp_path):
    roots = [tmp_path / "diffusers", tmp_path / "loras"]
    assert find_published("flux-corrector", roots) is None
    index = put(roots[0] / "FLUX.1-dev" / "model_index.json")
    assert find_published("flux-corrector", roots) is None
    mine = put(tmp_path / "mine.safetensors")
    assert find_published("flux-corrector", roots, mine) == (index.parent, mine)
    lora = put(roots[1] / "FLUX-Corrector" / "pytorch_lora_weights.safetensors")
    assert find_published("flux-corrector", roots) == (index.parent, lora)


def test_a_set_of_three_parts_is_found_by_the_folder_of_its_checkpoint(tmp_path):
    put(tmp_path / "Sana_1600M_1024px_MultiLing_diffusers" / "model_index.json")
    checkpoint = put(tmp_path / "reflect-dit" / "config.json").parent
    assert find_published("reflect-dit", [tmp_path]) is None
    assert "siglip" in how_to_get("reflect-dit", tmp_path)
    put(checkpoint / "image_encoder" / "config.json")
    assert find_published("reflect-dit", [tmp_path]) == (tmp_path / "Sana_1600M_1024px_MultiLing_diffusers", checkpoint)


@pytest.mark.parametrize("name, folder", [("kontext", "FLUX.1-Kontext-dev"),
                                          ("qwen-image-edit", "Qwen-Image-Edit-2509")])
def test_an_editor_has_no_corrector_beside_it(name, folder, tmp_path):
    assert find_published(name, [tmp_path]) is None
    index = put(tmp_path / folder / "model_index.json")
    assert find_published(name, [tmp_path]) == (index.parent, None)
    # One that was asked for is handed on, for the editor to refuse it.
    mine = put(tmp_path / "mine.safetensors")
    assert find_published(name, [tmp_path], mine) == (index.parent, mine)


def test_a_family_that_there_is_no_generator_of_says_so_before_anybody_downloads_it(tmp_path, monkeypatch):
    monkeypatch.setattr(published, "FAMILIES", {})
    assert find_published("reflect-dit", [tmp_path]) is None
    assert "cannot load 'reflect-dit' yet" in how_to_get("reflect-dit", tmp_path)


def test_a_set_that_there_is_not():
    with pytest.raises(UserError, match="flux-corrector"):
        find_published("flux-3", [])
