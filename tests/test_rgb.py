"""Pictures of every mode become what somebody sees, in eight bits of RGB."""

import numpy as np
import pytest
from PIL import Image

from reflect_core.generators.rgb import as_rgb

RAMP = np.linspace(0, 1, 32, dtype=np.float32).reshape(4, 8)


def level(picture):
    made = as_rgb(picture)
    assert made.mode == "RGB" and made.size == picture.size
    return np.asarray(made).astype(float)[..., 0]


@pytest.mark.parametrize("picture", [
    Image.fromarray((RAMP * 65535).astype(np.uint16)), Image.fromarray((RAMP * 65535).astype(np.int32)),
    Image.frombytes("I;16B", (8, 4), (RAMP * 65535).astype(">u2").tobytes()),
    Image.fromarray(RAMP), Image.fromarray((RAMP * 255).astype(np.uint8))])
def test_grey_of_any_depth_keeps_its_levels(picture):
    assert np.abs(level(picture) - RAMP * 255).max() <= 1


def test_what_is_beyond_white_or_no_number_is_not_wrapped():
    odd = Image.fromarray(np.array([[2.0, -1.0, np.nan, np.inf]], dtype=np.float32))
    assert level(odd).tolist() == [[255, 0, 0, 255]]


def colours(picture):
    return [tuple(colour) for colour in np.asarray(as_rgb(picture)).reshape(-1, 3).tolist()]


def test_transparent_places_are_white_and_not_their_hidden_colour():
    seen = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    seen.putpixel((1, 0), (200, 10, 10, 255))
    assert colours(seen) == [(255, 255, 255), (200, 10, 10)]
    assert colours(Image.new("LA", (1, 1), (0, 128))) == [(127, 127, 127)]
    assert colours(Image.new("La", (1, 1), (0, 0))) == [(255, 255, 255)]
    indexed = Image.new("P", (1, 1), 0)
    indexed.putpalette([0, 0, 0])
    indexed.info["transparency"] = 0
    assert colours(indexed) == [(255, 255, 255)]
    indexed.info["transparency"] = b"\x00"
    assert colours(indexed) == [(255, 255, 255)]


@pytest.mark.parametrize("mode", ["RGB", "P", "CMYK", "YCbCr", "HSV", "1"])
def test_other_modes_are_as_pillow_turns_them_to_rgb(mode):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (4, 6, 3), dtype=np.uint8))
    picture = noise.convert(mode)
    assert as_rgb(picture).tobytes() == picture.convert("RGB").tobytes()
