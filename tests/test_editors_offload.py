"""Editors on a device that does not hold all their parts: the same pictures, each part brought when it is its turn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny_editors
from aligned import aligned
from PIL import Image
from tiny_flux import write_tiny_flux

from reflect_core.generators.editors.draw_and_edit import DrawAndEdit
from reflect_core.presets.load import load_generator
from reflect_core.types import Pair, Request, UserError

pytestmark = pytest.mark.filterwarnings("ignore:CLIP sees", "ignore:T5 sees")
SETTINGS = {"defaults": {"width": 32, "height": 32, "steps": 2}, "options": {"max_sequence_length": 12}}
AWAY = "cpu:0"
"""Another name than the CPU's own, so that what comes and goes is moved."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("editors")
    return {"kontext": tiny_editors.write_tiny_kontext(root / "kontext", SETTINGS),
            "qwen": tiny_editors.write_tiny_qwen(root / "qwen"),
            "base": write_tiny_flux(root / "base", lora=False, seed=5, settings=SETTINGS)}


def drawn(generator):
    plain = Request("a red circle", 3, 32, 32, 2, 2.5)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    edit = replace(plain, context=(Pair("add a star", picture=picture),))
    requests = [plain, edit, replace(edit, seed=4, steps=3), replace(plain, seed=5)]
    return np.stack([np.asarray(one.picture) for one in generator.draw(requests)]).astype(int)


@pytest.mark.parametrize("offload", ["component", "layers"])
@pytest.mark.parametrize("kind, base", [("kontext", False), ("kontext", True), ("qwen", False)])
def test_pictures_are_the_same(folders, kind, base, offload):
    options = {"base": str(folders["base"])} if base else {}
    whole = load_generator(folders[kind], **options)
    parted = load_generator(folders[kind], device=AWAY, offload=offload, **options)
    assert isinstance(parted, DrawAndEdit) == base
    manager = parted.places.manager
    asked = []
    parted.places.manager = lambda name, pixels=0: asked.append(name) or manager(name, pixels)
    assert np.array_equal(drawn(aligned(whole)), drawn(parted))
    turns = [name for name, before in zip(asked, [None, *asked]) if name != before]
    for part in ("transformer", "text_encoder", *(["base:transformer", "base:text_encoder"] if base else [])):
        assert turns.count(part) == 1, turns
    assert turns.count("vae") == 2 and turns.count("base:vae") == int(base), "flawed pictures, and what was drawn"


def test_a_way_that_there_is_not(folders):
    with pytest.raises(UserError, match="option offload is 'some'; expected 'none' or 'component' or 'layers'"):
        load_generator(folders["kontext"], offload="some")
