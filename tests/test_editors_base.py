"""An editor's base, by every name that a model has: on the command line, in reflect.json, on the record and moved."""

import json
import re
import shutil
from pathlib import Path

import pytest
import tiny_editors
from command import inside
from flux_files import tokenizers, write_base, write_files
from test_presets_found import cache, comfyui

from reflect_core.generators.editors.draw_and_edit import DrawAndEdit
from reflect_core.presets.choice import ModelChoice, from_settings
from reflect_core.presets.load import load_generator
from reflect_core.presets.roots import VARIABLE, Roots
from reflect_core.search import load
from reflect_core.types import Request, UserError

DRAW = ["--pictures", "2", "--size", "64", "--steps", "2", "--set", "pool=1", "--set", "branches=1", "--quiet"]
SETTINGS = {"defaults": {"width": 64, "height": 64, "steps": 2}, "options": {"max_sequence_length": 12}}
pytestmark = pytest.mark.filterwarnings("ignore:CLIP sees", "ignore:T5 sees")


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("FLUX.1-dev"))


@pytest.fixture(scope="module")
def files(flux, tmp_path_factory):
    return write_files(flux, tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def editor(tmp_path_factory):
    return tiny_editors.write_tiny_kontext(tmp_path_factory.mktemp("kontext"), SETTINGS)


@pytest.fixture(autouse=True)
def nothing_elsewhere(monkeypatch, tmp_path):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def chosen(editor, base, **more):
    return ModelChoice(str(editor), options={"base": str(base)}, **more)


def with_base(folder, base):
    """An editor's folder whose own reflect.json names a base."""
    tiny_editors.write_tiny_kontext(folder, {**SETTINGS, "options": {**SETTINGS["options"], "base": base}})
    return folder


def test_any_name_that_a_model_has(editor, flux, files, tmp_path, monkeypatch):
    plain = shutil.copytree(flux, tmp_path / "alone", ignore=shutil.ignore_patterns("lora"))
    parts = {n: str(p) for n, p in {**files, **tokenizers(flux)}.items() if n != "transformer"}
    named = {"bundled": chosen(editor, "shapes-flux"),
             "folder": chosen(editor, plain),
             "single files": chosen(editor, files["transformer"], parts={f"base:{n}": p for n, p in parts.items()})}
    snapshot = cache(tmp_path / "hub", "black-forest-labs/FLUX.1-dev", plain)
    named["repository"] = chosen(editor, "black-forest-labs/FLUX.1-dev")
    named["published"] = chosen(editor, "flux-corrector")
    assert named["folder"].fingerprint() == named["repository"].fingerprint() == named["published"].fingerprint()
    assert named["repository"].base.folder == named["published"].base.folder == snapshot
    assert named["published"].base.lora is None, "no corrector is missed, and none is loaded"
    shutil.rmtree(tmp_path / "hub")
    named["roots"] = chosen(editor, "flux-corrector", roots=Roots([comfyui(tmp_path, flux, files)]))
    assert named["roots"].base.folder.name == "flux1-dev.safetensors" and len(named["roots"].base.parts) == 5
    assert named["single files"].fingerprint() == named["roots"].fingerprint() != named["folder"].fingerprint()
    request = Request("a red circle", 1, 64, 64, 2, 3.5)
    shown = set()
    for name in ("folder", "single files", "roots"):
        made = named[name].load()
        assert isinstance(made, DrawAndEdit) and made.drawer.max_context == 0
        assert named[name].defaults == {k: made.defaults[k] for k in named[name].defaults}
        shown.add(made.draw([request])[0].picture.tobytes())
    assert len(shown) <= 2 and named["bundled"].load().drawer.max_context == 1
    assert named["folder"].files()[-1].is_relative_to(plain), "a ComfyUI sees that the base has changed"


def test_what_was_published_for_sana_draws_without_its_context(editor, tmp_path):
    from tiny_sana import write_tiny_sana

    sana = write_tiny_sana(tmp_path / "sana", reflect=False)
    cache(tmp_path / "hub", "Efficient-Large-Model/Sana_1600M_1024px_MultiLing_diffusers", sana)
    choice = ModelChoice(str(editor), options={"base": "reflect-dit", "encoder_device": "cpu"})
    assert choice.base.lora is None and choice.base.parts == {}
    made = choice.load()
    assert made.drawer.max_context == 0 and made.max_context == 1


def test_roots_are_those_of_the_command(editor, flux, files, tmp_path, capsys, monkeypatch):
    root = comfyui(tmp_path, flux, files)
    words = ["run", "a red circle", "--model", editor, "--option", "base=flux-corrector", "--json", *DRAW]
    assert "the weights of 'flux-corrector' are not all here; missing: black-forest-labs/FLUX.1-dev" in inside(
        capsys, *words, "--out", tmp_path / "no").error and not (tmp_path / "no").exists()
    for number, more in enumerate((["--models", root], [])):
        if not more:
            monkeypatch.setenv(VARIABLE, str(root))
        done = inside(capsys, *words, *more, "--out", tmp_path / f"run{number}")
        assert done.code == 3, done.err
        header, _ = load(tmp_path / f"run{number}")
        known = header.settings["model"]
        assert known["options"]["base"].endswith("flux1-dev.safetensors")
        assert set(known["parts"]) == {f"base:{name}" for name in ("vae", "text_encoder", "text_encoder_2", "tokenizer",
                                                                   "tokenizer_2")}
    monkeypatch.delenv(VARIABLE)
    again = inside(capsys, "replay", tmp_path / "run0", "--json", "--quiet")  # all is on the record
    assert again.code == 0 and json.loads(again.out)["same_model"] is True, again.err


@pytest.fixture(scope="module")
def base(flux, tmp_path_factory):
    return shutil.copytree(flux, tmp_path_factory.mktemp("base") / "mine", ignore=shutil.ignore_patterns("lora"))


def cut(run, to, lines):
    """A record as a run leaves it that was killed."""
    shutil.copytree(run, to)
    whole = (to / "run.jsonl").read_text().splitlines(keepends=True)
    (to / "run.jsonl").write_text("".join(whole[:lines]))
    return to


def test_a_base_that_has_moved(editor, base, flux, tmp_path, capsys):
    where = shutil.copytree(base, tmp_path / "before")
    done = inside(capsys, "run", "a red circle", "--model", editor, "--option", f"base={where}", "--out",
                  tmp_path / "run", "--json", *DRAW)
    assert done.code == 3, done.err
    killed = cut(tmp_path / "run", tmp_path / "killed", 4)
    now = where.rename(tmp_path / "now")
    for command in ("replay", "resume"):
        assert f"option base: {where}: is neither" in inside(capsys, command, killed, "--quiet").error
    again = inside(capsys, "replay", tmp_path / "run", "--option", f"base={now}", "--json", "--quiet")
    assert again.code == 0 and json.loads(again.out)["same_model"] is True, again.err
    # Another model is told before it is loaded; a replay compares all the same.
    other = shutil.copytree(now, tmp_path / "other")
    scheduler = other / "scheduler" / "scheduler_config.json"
    scheduler.write_text(scheduler.read_text() + " ")
    refused = inside(capsys, "resume", killed, "--option", f"base={other}", "--quiet").error
    assert f"the base, {other}, is not the model that drew the run's first pictures: its fingerprint was" in refused
    assert "try --option base=MODEL with where it is now" in refused
    compared = inside(capsys, "replay", tmp_path / "run", "--option", f"base={other}")
    assert "the base, " in compared.err and "the weights are not the record's" in compared.out
    assert "now there is none" in inside(capsys, "resume", killed, "--option", "base=none", "--quiet").error
    resumed = inside(capsys, "resume", killed, "--option", f"base={now}", "--json", "--quiet")
    assert resumed.code == 3, resumed.err
    (_, whole), (_, after) = load(tmp_path / "run"), load(killed)
    assert [c.sha256 for c in after.candidates] == [c.sha256 for c in whole.candidates]


@pytest.mark.parametrize("words, said", [
    (["--option", "keep=false"], "--option keep: a run goes on with the options that it has; expected one of base, of"),
    (["--option", "base"], "--option 'base'; expected NAME=VALUE"), (["--option", "base=3"], "option base is 3"),
    (["--part", "base:vae=/no"], "the model .* has no base; expected an editor, and --option base=MODEL too"),
    (["--option", "base=shapes-flux"], "the run had no base, and now there is one")])
def test_what_a_resume_is_not_told(editor, base, tmp_path, capsys, words, said):
    done = inside(capsys, "run", "a red circle", "--model", editor, "--out", tmp_path / "run", *DRAW)
    assert done.code == 3, done.err
    killed = cut(tmp_path / "run", tmp_path / "killed", 4)
    assert re.search(said, inside(capsys, "resume", killed, "--quiet", *words).error)


def test_a_run_may_go_on_offloaded(editor, base, tmp_path, capsys):
    done = inside(capsys, "run", "a red circle", "--model", editor, "--option", f"base={base}", "--out",
                  tmp_path / "run", *DRAW)
    assert done.code == 3, done.err
    killed = cut(tmp_path / "run", tmp_path / "killed", 4)
    resumed = inside(capsys, "resume", killed, "--option", "offload=component", "--quiet")
    assert resumed.code == 3, resumed.err


class TestInReflectJson:
    def test_a_path_is_relative_to_the_folder(self, base, tmp_path, monkeypatch):
        shutil.copytree(base, tmp_path / "models" / "FLUX.1-dev")
        folder = with_base(tmp_path / "models" / "kontext", "../FLUX.1-dev")
        shutil.copytree(tmp_path / "models" / "kontext", tmp_path / "FLUX.1-dev")  # another of that name, elsewhere
        (tmp_path / "there").mkdir()
        monkeypatch.chdir(tmp_path / "there")
        choice = ModelChoice(str(folder))
        assert choice.base.folder.resolve() == tmp_path / "models" / "FLUX.1-dev"
        assert isinstance(load_generator(folder), DrawAndEdit)
        assert not isinstance(load_generator(folder, base="none"), DrawAndEdit)
        assert ModelChoice(str(folder), options={"base": "none"}).base is None
        # Both have moved, and still lie beside each other.
        known, before = json.loads(json.dumps(choice.settings())), choice.fingerprint()
        (tmp_path / "models").rename(tmp_path / "moved")
        with pytest.raises(UserError, match="models/kontext: is neither"):
            from_settings(known)
        again = from_settings(known, model=str(tmp_path / "moved" / "kontext"))
        assert again.fingerprint() == before and again.base_differs(known) == ""
        with pytest.raises(UserError, match="option base: .*models/FLUX.1-dev: is neither"):
            from_settings(known | {"folder": str(tmp_path / "moved" / "kontext")})

    def test_the_record_of_a_run_that_goes_on_stays_as_it_was(self, base, tmp_path):
        choice = ModelChoice(str(with_base(tmp_path / "kontext", str(base))))
        known = json.loads(json.dumps(choice.settings()))
        assert known["base"]["own"] and from_settings(known).settings() == known

    def test_an_option_goes_first(self, base, tmp_path):
        folder = with_base(tmp_path / "kontext", "nowhere")
        with pytest.raises(UserError, match=r"reflect.json: option base: .*kontext/nowhere: is neither a bundled"):
            ModelChoice(str(folder))
        choice = chosen(folder, base)
        assert choice.base.folder == base and not choice.settings()["base"]["own"]

    def test_a_repository_is_none_of_the_folders_paths(self, base, tmp_path, monkeypatch):
        folder = with_base(tmp_path / "kontext", "black-forest-labs/FLUX.1-dev")
        with pytest.raises(UserError, match="no repository of that name is in the Hugging Face cache"):
            ModelChoice(str(folder))
        shutil.copytree(base, tmp_path / "here" / "black-forest-labs" / "FLUX.1-dev")
        monkeypatch.chdir(tmp_path / "here")  # nor of those where the command runs
        with pytest.raises(UserError, match="kontext/black-forest-labs/FLUX.1-dev: is neither"):
            ModelChoice(str(folder))
        snapshot = cache(tmp_path / "hub", "black-forest-labs/FLUX.1-dev", base)
        assert ModelChoice(str(folder)).base.folder == snapshot

    def test_no_editor_goes_round_in_a_circle(self, base, tmp_path):
        one, other = with_base(tmp_path / "one", "../other"), with_base(tmp_path / "other", str(tmp_path / "one"))
        for folder in (one, other):
            for load_it in (load_generator, lambda path: ModelChoice(str(path))):
                with pytest.raises(UserError, match="an editor with a base of its own .*try another one, or take 'ba"):
                    load_it(folder)
        itself = with_base(tmp_path / "itself", ".")
        with pytest.raises(UserError, match="is ., the editor itself"):
            ModelChoice(str(itself))
        chained = with_base(tmp_path / "chained", str(base))
        with pytest.raises(UserError, match="an editor with a base of its own"):
            chosen(with_base(tmp_path / "first", "none"), chained)
        assert chosen(one, with_base(tmp_path / "alone", "none")).base.edits


def test_an_editor_may_draw_for_another(editor, tmp_path):
    other = shutil.copytree(editor, tmp_path / "other")
    assert chosen(editor, other).load().drawer.edits


@pytest.mark.parametrize("break_it, said", [
    (lambda base: (base / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"x"), "not a whole safetensors"),
    (lambda base: (base / "model_index.json").write_text('{"_class_name": "OtherPipeline"}'), "'OtherPipeline'"),
    (lambda base: (base / "reflect.json").write_text('{"options": {"what": 1}}'), "no option 'what'")])
def test_a_broken_base_is_told_before_any_weight_is_read(editor, base, tmp_path, monkeypatch, break_it, said):
    broken = shutil.copytree(base, tmp_path / "broken")
    break_it(broken)
    monkeypatch.setattr("diffusers.ModelMixin.from_pretrained", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(UserError, match="base") as caught:
        chosen(editor, broken).load()
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_parts_that_are_missing_are_named_as_the_bases(editor, files):
    with pytest.raises(UserError, match="try --part base:vae=PATH --part base:text_encoder=PATH"):
        chosen(editor, files["transformer"]).load()
    with pytest.raises(UserError, match="--part base:vae=/no: no such file"):
        chosen(editor, files["transformer"], parts={"base:vae": "/no"})


def test_where_a_base_lies_is_not_what_it_is(editor, base, tmp_path):
    moved = shutil.copytree(base, tmp_path / "moved")
    assert chosen(editor, base).fingerprint() == chosen(editor, moved).fingerprint()
    assert chosen(editor, base).fingerprint() != ModelChoice(str(editor)).fingerprint()
    assert Path(chosen(editor, moved).settings()["options"]["base"]) == moved
