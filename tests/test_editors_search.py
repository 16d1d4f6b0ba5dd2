"""Editors in a search: by the command line and by the library, with another model for the first pictures or alone."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tiny_editors
from command import inside
from fakes import FakeReflector, FakeVerifier
from tiny_flux import write_tiny_flux

from reflect_core.generators.editors.draw_and_edit import DrawAndEdit
from reflect_core.generators.editors.kontext import FluxKontext
from reflect_core.generators.flux_corrector.pipeline import FluxCorrector
from reflect_core.presets.load import load_generator
from reflect_core.search import ReflectionFlow, load, replay, resume, start
from reflect_core.search.depth import depth
from reflect_core.types import Pair, Request, UserError

SETTINGS = {"defaults": {"width": 64, "height": 64, "steps": 2, "guidance": 2.5},
            "options": {"max_sequence_length": 12}}
pytestmark = pytest.mark.filterwarnings("ignore:CLIP sees", "ignore:T5 sees")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_editors.write_tiny_kontext(tmp_path_factory.mktemp("kontext"), SETTINGS)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_tiny_flux(tmp_path_factory.mktemp("base"), lora=False, seed=5, settings=SETTINGS)


def test_run_and_replay(folder, tmp_path, capsys):
    ran = inside(capsys, "run", "two red circles", "--model", folder, "--pictures", "12", "--set", "pool=2", "--set",
                 "branches=1", "--set", "rounds=10", "--out", tmp_path / "run", "--json")
    assert ran.code == 3, ran.err
    header, run = load(tmp_path / "run")
    assert header.policy["max_depth"] == 3 and header.policy["patience"] == 3
    depths = [depth(run, c.id) for c in run.candidates]
    assert len(depths) == 12 and max(depths) <= 3 and sum(map(bool, depths)) >= 6
    again = inside(capsys, "replay", tmp_path / "run")
    assert again.code == 0 and "came out the same, bit for bit" in again.out, again.out + again.err


def test_another_model_draws_the_first_pictures(folder, base, tmp_path, capsys):
    ran = inside(capsys, "run", "two red circles", "--model", folder, "--option", f"base={base}", "--pictures", "4",
                 "--out", tmp_path / "run", "--json")
    assert ran.code == 3, ran.err
    _, run = load(tmp_path / "run")
    drawer = load_generator(base)
    for c in run.candidates:
        if not c.request.context:
            assert drawer.draw([c.request])[0].picture.tobytes() == run.picture(c.id).tobytes()
    assert any(c.request.context for c in run.candidates)


def test_official_is_bounded_and_has_no_options_of_flux(folder, tmp_path, capsys):
    ran = inside(capsys, "run", "two red circles", "--model", folder, "--policy", "official", "--pictures", "3",
                 "--out", tmp_path / "run", "--json")
    assert ran.code == 3, ran.err
    header, _ = load(tmp_path / "run")
    assert header.policy == {**ReflectionFlow.official().to_json(), "max_depth": 3}
    assert header.settings["model"]["options"] == {}


def test_a_lora_is_refused(folder, tmp_path, capsys):
    lora = write_tiny_flux(tmp_path / "flux") / "lora" / "pytorch_lora_weights.safetensors"
    ran = inside(capsys, "run", "two red circles", "--model", folder, "--lora", lora, "--out", tmp_path / "run")
    assert ran.code == 2 and "takes no corrector's LoRA" in ran.error and not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["kontext", "qwen"])
def test_a_run_that_was_killed_goes_on_to_the_same_end(kind, folder, tmp_path, monkeypatch):
    if kind == "qwen":
        pytest.importorskip("diffusers", minversion="0.36")
        from reflect_core.generators.editors import qwen, qwen_text

        for module, name in ((qwen, "AREA"), (qwen_text, "PLUS_AREA")):
            monkeypatch.setattr(module, name, 64 * 64)
        folder = tiny_editors.write_tiny_qwen(tmp_path / "model")
    request = Request("two red circles", 3, 64, 64, 2, 2.5)
    policy = ReflectionFlow(2, 2, 2, max_depth=1)

    def actors():
        return load_generator(folder), FakeVerifier(2), FakeReflector()

    with start(request, policy, *actors(), chunk=2, folder=tmp_path / "whole", fingerprint="x") as stepper:
        whole = stepper.run()
    generator, *others = actors()
    drawn, draw = [], generator.draw

    def killed(requests, callback=None):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(len(requests))
        return draw(requests, callback)

    generator.draw = killed
    with start(request, policy, generator, *others, chunk=2, folder=tmp_path / "cut", fingerprint="x") as stepper:
        with pytest.raises(KeyboardInterrupt):
            stepper.run()
    with resume(tmp_path / "cut", *actors(), fingerprint="x") as stepper:
        after = stepper.run()
    assert [c.sha256 for c in after.candidates] == [c.sha256 for c in whole.candidates]
    assert len({c.sha256 for c in whole.candidates}) == 6
    assert after.ledger.items == whole.ledger.items
    assert (whole.ledger.total.denoiser_evaluations == after.ledger.total.denoiser_evaluations
            == sum(generator.evaluations(c.request) for c in whole.candidates))
    assert replay(tmp_path / "whole", load_generator(folder), fingerprint="x").same


@pytest.fixture(scope="module")
def both(folder, base):
    return DrawAndEdit(FluxCorrector.from_folder(base), FluxKontext.from_folder(folder))


class TestDrawAndEdit:
    def requests(self, both):
        plain = Request("a red circle", 1, 64, 64, 2, 2.5)
        picture = both.drawer.draw([plain])[0].picture
        edit = replace(plain, context=(Pair("add a star", picture=picture),))
        return [edit, plain, replace(edit, seed=2), replace(plain, seed=3)]

    def test_each_goes_to_its_own_in_order(self, both):
        requests, steps = self.requests(both), []
        drawn = both.draw(requests, lambda at: steps.append(at.step))
        assert steps == [1, 2] * 2
        for request, one in zip(requests, drawn):
            own = both.editor if request.context else both.drawer
            other = both.drawer if request.context else both.editor
            assert one.cost.denoiser_evaluations == both.evaluations(request) == own.evaluations(request)
            # A batch rounds otherwise than one alone.
            assert np.abs(own.draw([request])[0].picture - np.asarray(one.picture, dtype=int)).max() <= 1
            if not request.context:
                assert other.draw([request])[0].picture.tobytes() != one.picture.tobytes()
        assert both.draw([]) == [] and both.max_context == 1 and both.edits

    def test_one_manager_for_both(self, both):
        asked = []
        both.places.manager = lambda name, pixels: asked.append(name) or "cpu"
        try:
            both.draw(self.requests(both)[:2])
        finally:
            both.places.manager = None
        assert set(asked) == {"base:transformer", "base:vae", "transformer", "vae"}
        assert set(asked) <= both.parts.keys() and both.drawer.places.manager is None
        assert both.parts["base:vae"] is both.drawer.vae and both.parts["vae"] is both.editor.vae

    def test_a_size_that_only_one_can_draw_is_told_before_the_first_step(self, both, monkeypatch):
        monkeypatch.setattr(both.editor, "patch", 24)
        with pytest.raises(UserError, match="width is 64; expected a multiple of 24 pixels; try 72"):
            both.draw(self.requests(both)[1:2], lambda at: pytest.fail("it drew what cannot be edited"))

    def test_options_are_the_editors(self, both):
        other = both.with_options(keep=False)
        assert other.drawer is both.drawer and other.editor.options.keep is False

    def test_the_second_must_correct(self, both):
        with pytest.raises(UserError, match="corrects nothing"):
            DrawAndEdit(both.editor, both.drawer)


def test_a_base_in_reflect_json(base, tmp_path):
    folder = tiny_editors.write_tiny_kontext(tmp_path, {**SETTINGS, "options": {
        "max_sequence_length": 12, "base": str(base)}})
    assert isinstance(load_generator(folder), DrawAndEdit)
    said = json.loads((folder / "reflect.json").read_text())
    assert said["options"]["base"] == str(base)
