"""The detector against the renderer: clean and disturbed, touching, malformed, off-palette, out of place."""

import numpy as np
import pytest
from check_detector import BOUNDS, DISTURBANCES, agrees, everything, measure
from PIL import Image

from reflect_core.shapes.detector import BLOB, detect
from reflect_core.shapes.scene import BACKGROUND, COLOURS, SHAPES, Obj, render, render_array


def test_reads_scenes_right():
    shares = measure(scenes=200, seed=3)
    assert all(shares[name] >= BOUNDS[name] for name in DISTURBANCES), shares


@pytest.mark.slow
def test_reads_thousands_of_scenes_right():
    shares = measure(scenes=4000, seed=4)
    assert all(shares[name] >= BOUNDS[name] for name in DISTURBANCES), shares


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("colour", COLOURS)
def test_every_pair_and_size_clean(colour, shape):
    for radius in (5.5, 6.25, 7.75, 10.5):
        obj = Obj(shape, colour, 30.25, 33.5, radius)
        (found,) = detect(render((obj,)))
        assert (found.shape, found.colour) == (shape, colour)
        assert abs(found.x - obj.x) <= 0.5 and abs(found.y - obj.y) <= 0.5 and abs(found.r - radius) <= 0.5


def test_empty_picture_and_specks_show_nothing():
    pixels = np.full((64, 64, 3), BACKGROUND, dtype=np.uint8)
    assert detect(pixels) == ()
    pixels[10:13, 10:13] = COLOURS["red"]
    assert detect(pixels) == ()


def test_coordinates_point_right_and_down():
    (found,) = detect(render((Obj("star", "blue", 50, 14, 8),)))
    assert (round(found.x), round(found.y)) == (50, 14)


def _disc(pixels, x, y, half_width, half_height, colour):
    rows, columns = np.mgrid[0:64, 0:64] + 0.5
    pixels[((columns - x) / half_width) ** 2 + ((rows - y) / half_height) ** 2 <= 1] = colour


@pytest.mark.parametrize("half_width, half_height", [(12, 5), (5, 12), (16, 16)])
def test_ellipses_and_giants_are_blobs(half_width, half_height):
    pixels = np.full((64, 64, 3), BACKGROUND, dtype=np.uint8)
    _disc(pixels, 32, 32, half_width, half_height, COLOURS["green"])
    assert [o.words for o in detect(pixels)] == [f"green {BLOB}"]


def test_half_a_square_and_an_upside_down_triangle_are_blobs():
    pixels = render_array((Obj("square", "red", 20, 20, 9),))
    pixels[20:] = BACKGROUND
    assert [o.shape for o in detect(pixels)] == [BLOB]
    assert [o.shape for o in detect(render_array((Obj("triangle", "red", 32, 32, 9),))[::-1])] == [BLOB]


def test_two_halves_of_different_colour_are_two_blobs():
    pixels = render_array((Obj("circle", "red", 32, 32, 10),))
    right = render_array((Obj("circle", "blue", 32, 32, 10),))
    pixels[:, 32:] = right[:, 32:]
    assert sorted(o.words for o in detect(pixels)) == [f"blue {BLOB}", f"red {BLOB}"]


@pytest.mark.parametrize("gap", [1.0, 0.0, -2.0, -4.0])
def test_touching_objects_of_different_colours_are_separated(gap):
    rng = np.random.default_rng(1)
    names = list(COLOURS)
    right = 0
    for trial in range(40):
        colours = [names[k] for k in rng.permutation(len(names))[:2]]
        left = Obj(SHAPES[rng.integers(4)], colours[0], 22, 32, 7.5)
        other = Obj(SHAPES[rng.integers(4)], colours[1], 22, 32, 8)
        other = Obj(other.shape, other.colour, round(4 * (22 + left.reach + other.reach + gap)) / 4, 33, 8)
        pixels = render_array((left, other))
        right += agrees((left, other), detect(everything(pixels, rng) if trial % 2 else pixels))
    assert right >= 38


def test_touching_circles_of_one_colour_are_split():
    scene = (Obj("circle", "red", 22, 32, 8), Obj("circle", "red", 36.5, 32, 8))
    assert agrees(scene, detect(render(scene)))


def test_off_palette_colour_is_the_nearest_one():
    pixels = render_array((Obj("circle", "red", 32, 32, 8),)).astype(float)
    covered = (pixels != BACKGROUND).any(axis=-1)
    pixels[covered] += (10, 22, -20)
    assert [o.words for o in detect(np.clip(pixels, 0, 255).astype(np.uint8))] == ["red circle"]


def painted(inside, colour, samples=8):
    """A picture of one antialiased area: `inside(x, y)` says which points of the plane it covers, and
    `colour` is one colour or one for each pixel, (64, 64, 3)."""
    axis = (np.arange(64 * samples) + 0.5) / samples
    cover = inside(*np.meshgrid(axis, axis)).reshape(64, samples, 64, samples).mean(axis=(1, 3))[..., None]
    return np.rint(np.array(BACKGROUND) * (1 - cover) + cover * np.array(colour)).astype(np.uint8)


def disc(radius, x=32.25, y=31.5):
    return lambda px, py: np.hypot(px - x, py - y) <= radius


@pytest.mark.parametrize("left, right, seen", [
    ((250, 170, 24), (248, 182, 26), "yellow"),
    ((248, 182, 26), (250, 170, 24), "yellow"),
    ((84, 66, 195), (114, 61, 186), "purple"),
    ((224, 72, 36), (246, 108, 27), "orange"),
])
@pytest.mark.parametrize("radius", [6, 8])
def test_a_colour_between_two_names_is_one_object(left, right, seen, radius):
    share = np.clip((np.arange(64) - 32 + radius) / (2 * radius), 0, 1)[None, :, None]
    shaded = np.array(left) * (1 - share) + np.array(right) * share
    (found,) = detect(painted(disc(radius), np.broadcast_to(shaded, (64, 64, 3))))
    assert found.words == f"{seen} circle"


def polygon(corners, radius, turned):
    """The points inside a regular polygon with its first corner at `turned` degrees."""
    angles = np.radians(turned) + np.pi / corners + np.arange(corners) * 2 * np.pi / corners
    edge = radius * np.cos(np.pi / corners)
    return lambda px, py: np.all([(px - 32.2) * np.cos(t) + (py - 31.7) * np.sin(t) <= edge for t in angles], axis=0)


@pytest.mark.parametrize("inside", [
    *(polygon(4, radius, 45 + turned) for radius in (7, 9, 11) for turned in (30, 38, 45)),
    *(polygon(5, radius, turned) for radius in (7, 8, 9, 10) for turned in (0, 18, 54)),
    lambda x, y: disc(10)(x, y) & ~disc(3.5)(x, y),
    lambda x, y: ((x - 32) / 9) ** 2 + ((y - 32) / 7) ** 2 <= 1,
    lambda x, y: ((x - 32.3) / 6) ** 2 + ((y - 32) / 8) ** 2 <= 1,
])
def test_what_is_not_round_is_no_circle(inside):
    assert [o.shape for o in detect(painted(inside, COLOURS["blue"]))] == [BLOB]


@pytest.mark.parametrize("radius", [5.5, 7, 9])
@pytest.mark.parametrize("lobes", [2, 3, 5])
def test_slightly_uneven_circles_are_circles(radius, lobes):
    def uneven(x, y):
        angle = np.arctan2(y - 32, x - 32)
        return np.hypot(x - 32, y - 32) <= radius * (1 + 0.04 * np.cos(lobes * angle + 0.4))

    assert [o.shape for o in detect(painted(uneven, COLOURS["blue"]))] == ["circle"]


@pytest.mark.parametrize("colour", [(135, 135, 135), (150, 150, 150), (185, 185, 185), (200, 200, 200), (230, 150, 150),
                                    (140, 220, 230), (250, 190, 130), (255, 192, 203), (143, 164, 117)])
@pytest.mark.parametrize("inside", [disc(8, 46, 18), lambda x, y: (x > 40) & (x < 55) & (y > 5) & (y < 20),
                                    lambda x, y: (x > 40) & (x < 46) & (y > 5) & (y < 11)])
def test_colours_far_from_the_palette_are_seen(colour, inside):
    alone = painted(inside, colour)
    assert len(detect(alone)) == 1
    scene = (Obj("circle", "red", 16, 16, 8), Obj("star", "blue", 46, 44, 8))
    picture = np.where((alone != BACKGROUND).any(axis=-1, keepdims=True), alone, render_array(scene))
    for pixels in (picture, everything(picture, np.random.default_rng(0))):
        found = detect(pixels)
        assert len(found) > len(scene)
        assert {"red circle", "blue star"} <= {o.words for o in found}


def test_shifted_background_is_tolerated():
    pixels = render_array((Obj("star", "yellow", 32, 32, 8),)).astype(float) - (9, 6, 12)
    assert [o.words for o in detect(np.clip(pixels, 0, 255).astype(np.uint8))] == ["yellow star"]


def test_pil_and_array_agree():
    scene = (Obj("star", "red", 20, 20, 8), Obj("square", "cyan", 45, 40, 7))
    assert detect(render(scene)) == detect(render_array(scene))


@pytest.mark.parametrize("picture", [Image.new("RGB", (32, 32)), np.zeros((64, 64)), np.zeros((3, 64, 64))])
def test_other_sizes_are_refused(picture):
    with pytest.raises(ValueError, match="64"):
        detect(picture)


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (128, 128, 128), (214, 36, 44)])
def test_uniform_pictures_do_not_break_it(colour):
    assert all(o.shape == BLOB for o in detect(np.full((64, 64, 3), colour, dtype=np.uint8)))


def test_pure_noise_does_not_break_it():
    rng = np.random.default_rng(0)
    for _ in range(10):
        detect(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))


@pytest.mark.parametrize("scale, dtype", [(1 / 255, np.float32), (1, np.float64), (1, np.int64)])
def test_other_than_eight_bits_is_refused(scale, dtype):
    picture = (render_array((Obj("circle", "red", 32, 32, 8),)) * scale).astype(dtype)
    with pytest.raises(ValueError, match="expected uint8"):
        detect(picture)
