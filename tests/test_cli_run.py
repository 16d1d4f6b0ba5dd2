"""run, resume, replay and show: exit codes, what is printed where, and records that survive anything."""

import io
import json
import re
import signal
import subprocess
import sys
import time
import warnings

import pytest
from command import ENVIRONMENT, ROOT, contents, inside, reflect, write_tiny_model
from fake_shapes import FakeShapesGenerator
from PIL import Image

from reflect_core.cli.progress import Progress, duration
from reflect_core.cli.settings import choose_folder
from reflect_core.presets.choice import ModelChoice
from reflect_core.search import Event, ReflectionFlow, load
from reflect_core.types import UserError

PROMPT = "two red circles left of a blue star"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def fake(model, monkeypatch):
    """The command line over a generator that draws shapes: `fake(...)` sets how well."""
    def use(**skill):
        monkeypatch.setattr(ModelChoice, "load", lambda self, **options: FakeShapesGenerator(**skill))
        return model
    return use


def test_an_accepted_picture_is_exit_code_0(fake, capsys, tmp_path):
    result = inside(capsys, "run", PROMPT, "--model", fake(flawed=1.0), "--out", tmp_path / "run")
    assert result.code == 0
    rows = dict(line.split(maxsplit=1) for line in result.out.splitlines())
    assert rows["score"] == "1.00, accepted" and rows["reason"].startswith("all ")
    for name in ("picture", "tree", "page"):
        assert (tmp_path / "run").as_posix() in rows[name]
    assert Image.open(rows["picture"]).size == (64, 64)
    assert Image.open(rows["tree"]).width > 500
    run = load(tmp_path / "run")[1]
    assert f"{len(run.candidates)} pictures" in rows["drawn"]
    # A line for each candidate on stderr, corrections with the words they were drawn from.
    lines = [line for line in result.err.splitlines() if line.startswith("round ")]
    assert len(lines) == len(run.candidates)
    for candidate, line in zip(run.candidates, lines):
        assert line.startswith(f"round {candidate.round}  candidate {candidate.id} ({candidate.id + 1} of 20)  "
                               f"score {candidate.score:.2f}")
        for pair in candidate.request.context:
            assert line.endswith(pair.feedback)


def test_without_an_accepted_picture_it_is_3(fake, capsys, tmp_path):
    args = ("run", PROMPT, "--model", fake(flawed=1.0, mends=0), "--pictures", 3, "--out", tmp_path / "run")
    result = inside(capsys, *args)
    assert result.code == 3 and "not accepted" in result.out and "3 pictures" in result.out


@pytest.mark.parametrize("policy", ["best_of_n", "noise_prompt", "reflection_flow"])
def test_one_picture_is_no_pictures(policy, fake, capsys, tmp_path):
    result = inside(capsys, "run", PROMPT, "--model", fake(flawed=1.0), "--pictures", 1, "--policy", policy, "--set",
                    "early_stop=false", "--out", tmp_path / "run")
    assert "1 picture, 4 denoiser evaluations, 1 judge call" in result.out and "is drawn\n" in result.out


@pytest.mark.parametrize("policy", ["best_of_n", "noise_prompt", "reflection_flow"])
def test_every_policy_keeps_to_its_number_of_pictures(policy, fake, capsys, tmp_path):
    result = inside(capsys, "run", PROMPT, "--model", fake(flawed=1.0, mends=0.1), "--policy", policy, "--pictures", 7,
                    "--set", "early_stop=false", "--json", "--quiet", "--out", tmp_path / "run")
    assert result.err == ""
    document = json.loads(result.out)
    assert document["policy"]["name"] == policy and document["pictures"] == 7 == len(document["candidates"])


def test_the_official_preset(fake, capsys, tmp_path):
    arguments = ("run", PROMPT, "--model", fake(), "--policy", "official", "--json", "--out")
    result = inside(capsys, *arguments, tmp_path / "run")
    document = json.loads(result.out)
    assert document["policy"] == ReflectionFlow.official().to_json()
    assert document["pictures"] == 64 and document["judge_calls"] == 94
    header = load(tmp_path / "run")[0]
    assert header.budget.pictures is None
    assert header.settings["model"]["options"] == {"text_join": "search"}
    result = inside(capsys, *arguments, tmp_path / "short", "--pictures", 5, "--option", "text_join=train")
    assert json.loads(result.out)["pictures"] == 5
    assert load(tmp_path / "short")[0].settings["model"]["options"] == {"text_join": "train"}


def test_the_document_holds_the_run(fake, capsys, tmp_path):
    result = inside(capsys, "run", PROMPT, "--model", fake(flawed=1.0), "--json", "--out", tmp_path / "run")
    document = json.loads(result.out)
    run = load(tmp_path / "run")[1]
    assert document["accepted"] and document["best"]["accepted"] and document["prompt"] == PROMPT
    assert [c["id"] for c in document["candidates"]] == [c.id for c in run.candidates]
    assert [c["score"] for c in document["candidates"]] == [c.score for c in run.candidates]
    for candidate in document["candidates"]:
        assert Image.open(candidate["picture"]).size == (64, 64)
    assert document["seconds"] >= sum(document["seconds_by_actor"].values())
    # show says the same of the same record, and so does resume, which has nothing left to do.
    for command in ("show", "resume"):
        again = inside(capsys, command, tmp_path / "run", "--json")
        assert again.code == 0 and json.loads(again.out) == document


def test_settings_and_defaults_reach_the_requests(fake, capsys, tmp_path):
    inside(capsys, "run", PROMPT, "--model", fake(), "--out", tmp_path / "a")
    request = load(tmp_path / "a")[0].request
    assert (request.seed, request.steps, request.guidance, request.width) == (0, 4, 2.5, 64)
    inside(capsys, "run", PROMPT, "--model", fake(), "--seed", 9, "--steps", 7, "--guidance", 4, "--size", "64x64",
           "--chunk", 2, "--evaluations", 90, "--seconds", 50, "--set", "patience=2", "--out", tmp_path / "b")
    header = load(tmp_path / "b")[0]
    assert (header.request.seed, header.request.steps, header.request.guidance) == (9, 7, 4.0)
    assert (header.chunk, header.budget.denoiser_evaluations, header.budget.seconds) == (2, 90, 50.0)
    assert header.policy["patience"] == 2


def test_show_writes_elsewhere_and_leaves_the_record_alone(fake, capsys, tmp_path):
    inside(capsys, "run", PROMPT, "--model", fake(), "--out", tmp_path / "run")
    before = contents(tmp_path / "run")
    result = inside(capsys, "show", tmp_path / "run", "--out", tmp_path / "elsewhere")
    assert result.code == 0 and contents(tmp_path / "run") == before
    assert contents(tmp_path / "elsewhere").keys() == {"tree.png", "index.html"}
    (tmp_path / "file").write_text("mine")
    assert "cannot be written" in inside(capsys, "show", tmp_path / "run", "--out", tmp_path / "file").error


def test_new_runs_get_folders_of_their_own(tmp_path):
    first = choose_folder("Two red circles, left of a BLUE star! " * 3, tmp_path)
    assert re.fullmatch(r"\d{8}-\d{6}-two-red-circles-left-of-a-blue-star[a-z-]*", first.name) and len(first.name) < 70
    first.mkdir()
    assert choose_folder("Two red circles, left of a BLUE star! " * 3, tmp_path) != first
    assert choose_folder("红色的圆", tmp_path).name.count("-") == 1


class Breaks(FakeShapesGenerator):
    """Draws so many times, and then something happens."""

    def __init__(self, times, what):
        super().__init__(flawed=1.0, mends=0.0)
        self.times, self.what = times, what

    def draw(self, requests, callback=None):
        if len(self.batches) == self.times:
            raise self.what
        return super().draw(requests, callback)


@pytest.mark.parametrize("what, code, said", [
    (UserError("no room on the disk"), 2, "error: no room on the disk; what was drawn before is kept"),
    (KeyboardInterrupt(), 130, "interrupted; nothing is lost")])
def test_what_breaks_off_says_how_to_go_on(what, code, said, model, fake, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(ModelChoice, "load", lambda self, **options: Breaks(2, what))
    folder = tmp_path / "a run"
    result = inside(capsys, "run", PROMPT, "--model", model, "--chunk", 1, "--pictures", 4, "--quiet", "--out", folder)
    assert result.code == code and result.out == ""
    assert result.err.startswith(said) and result.err.endswith(f"go on with: reflect resume '{folder}'\n")
    assert len(load(folder)[1].candidates) == 2
    fake(flawed=1.0, mends=0.0)
    assert inside(capsys, "resume", folder, "--quiet").code == 3
    assert len(load(folder)[1].candidates) == 4


# The model as it is: one process from the start to the end of a run's life.

def run_arguments(model, out):
    return ["run", "two red circles", "--model", model, "--pictures", 5, "--chunk", 2, "--steps", 3, "--seed", 5,
            "--policy", "best_of_n", "--set", "early_stop=false", "--out", out]


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """An uninterrupted run, by a process."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    result = reflect(*run_arguments(model, folder), "--json")
    assert result.code == 3, result.err
    assert json.loads(result.out)["pictures"] == 5
    return folder


def pictures(folder):
    return contents(folder / "pictures")


def test_a_torn_last_line_resumes(whole, capsys, tmp_path):
    lines = (whole / "run.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "run" / "pictures").mkdir(parents=True)
    for name, data in list(pictures(whole).items())[:2]:
        (tmp_path / "run" / "pictures" / name).write_bytes(data)
    # Header, plan, drawn and judged of the first chunk; then half a line.
    (tmp_path / "run" / "run.jsonl").write_bytes(b"".join(lines[:4]) + lines[4][:30])
    result = inside(capsys, "resume", tmp_path / "run")
    assert result.code == 3 and "5 pictures" in result.out
    assert pictures(tmp_path / "run") == pictures(whole)


def test_a_damaged_line_is_refused(whole, capsys, tmp_path):
    lines = (whole / "run.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "run.jsonl").write_bytes(b"".join([*lines[:2], b"{}\n", *lines[3:]]))
    for command in ("resume", "replay", "show"):
        before = contents(tmp_path)
        assert "line 3 of" in inside(capsys, command, tmp_path).error
        assert contents(tmp_path) == before


def test_another_model_is_refused(whole, capsys, tmp_path):
    lines = (whole / "run.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "run" / "pictures").mkdir(parents=True)
    (tmp_path / "run" / "run.jsonl").write_bytes(lines[0])
    other = write_tiny_model(tmp_path / "other", seed=1)
    assert "drawn by the model" in inside(capsys, "resume", tmp_path / "run", "--model", other).error


def test_replay_tells_same_from_different(whole, model, capsys, tmp_path):
    result = inside(capsys, "replay", whole)
    assert result.code == 0 and "all 5 pictures came out the same, bit for bit" in result.out
    other = write_tiny_model(tmp_path / "other", seed=1)
    result = inside(capsys, "replay", whole, "--model", other, "--json")
    document = json.loads(result.out)
    assert result.code == 3 and not document["same"] and document["same_model"] is False
    assert len(document["differences"]) == 5


def test_interrupted_it_says_how_to_go_on_and_does(model, whole, capsys, tmp_path):
    folder = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-m", "reflect_core", *map(str, run_arguments(model, folder))],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, cwd=ROOT)
    for line in process.stderr:
        if "candidate 1 (2 of 5)" in line:
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    if process.returncode == 3:
        pytest.skip("the machine was too fast: the run had ended")
    assert process.returncode == 130 and out == "" and "Traceback" not in err
    assert f"go on with: reflect resume {folder}" in err
    done = len(load(folder)[1].candidates)
    assert 2 <= done < 5
    result = inside(capsys, "resume", folder)
    assert result.code == 3 and pictures(folder) == pictures(whole)
    assert len([line for line in result.err.splitlines() if line.startswith("round ")]) == 5 - done


def test_interrupted_while_loading_there_is_nothing_to_clean_up(model, tmp_path):
    arguments = map(str, run_arguments(model, tmp_path / "run"))
    process = subprocess.Popen([sys.executable, "-m", "reflect_core", *arguments], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, cwd=ROOT,
                               # Where the tests run in the background, what they start would ignore Ctrl+C.
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    assert process.stderr.readline().startswith("loading ")
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err and out == ""
    assert not (tmp_path / "run" / "run.jsonl").exists()


def test_the_fingerprint_knows_every_part(model, tmp_path):
    import shutil

    first = ModelChoice(str(model)).fingerprint()
    assert first == ModelChoice(str(model)).fingerprint()
    assert first != ModelChoice(str(model), options={"text_join": "search"}).fingerprint()
    for part in ("transformer/config.json", "tokenizer/tokenizer.json", "lora/pytorch_lora_weights.safetensors"):
        copy = shutil.copytree(model, tmp_path / part.replace("/", "-"))
        (copy / part).write_bytes((copy / part).read_bytes() + b" ")
        assert ModelChoice(str(copy)).fingerprint() != first
    lora = shutil.copytree(model / "lora", tmp_path / "my-lora")
    brought = ModelChoice(str(model), str(lora)).fingerprint()
    (lora / "reflect.json").write_text('{"options": {"posterior": "mode"}}')
    assert ModelChoice(str(model), str(lora)).fingerprint() != brought
    assert ModelChoice(str(model), str(next(lora.glob("*.safetensors")))).fingerprint() != brought
    copy = shutil.copytree(model, tmp_path / "copy")
    (copy / "README.md").write_text("words")
    assert ModelChoice(str(copy)).fingerprint() == first


# The bar.

class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_in_a_terminal_there_is_a_bar_too():
    stream = Terminal()
    with Progress(stream=stream) as progress:
        progress(Event("planned", 0, most_pictures=20))
        progress(Event("step", 0, step=3, steps=10, pictures=0, most_pictures=20))
        progress(Event("judged", 0, candidate=0, score=0.5, accepted=False, pictures=1, most_pictures=20,
                       text="no star"))
        progress(Event("reflected", 1, candidate=0, pictures=1, most_pictures=20, text="add a star"))
    text = stream.getvalue()
    assert "round 0  candidate 0 (1 of 20)  score 0.50  no star\n" in text
    assert "round 0  candidate 0  step 3/10" in text and "add a star" in text and "1/20 " in text
    quiet = Terminal()
    with Progress(quiet=True, stream=quiet) as progress:
        progress(Event("judged", 0, candidate=0, score=0.5, accepted=False, pictures=1, most_pictures=20))
        progress.say("words")
    assert quiet.getvalue() == ""


def test_a_warning_is_a_line_above_the_bar():
    stream, before = Terminal(), warnings.showwarning
    with Progress(stream=stream) as progress:
        progress(Event("planned", 0, most_pictures=20))
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = progress._warn  # pytest's own is put in its place by catch_warnings
            warnings.warn("T5 does not see the end", stacklevel=1)
    assert "warning: T5 does not see the end\n" in stream.getvalue() and ".py" not in stream.getvalue()
    assert warnings.showwarning is before


def test_long_work_says_how_long_the_rest_takes(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("reflect_core.cli.progress.time.monotonic", lambda: now[0])
    stream = io.StringIO()
    progress = Progress(stream=stream)
    # Three of ten were there already: they say nothing about the speed.
    for seconds, done in ((0, 3.0), (60, 3.5), (120, 4.0), (840, 10.0)):
        now[0] = 100.0 + seconds
        progress.share(done, 10, "counting")
    assert stream.getvalue().splitlines() == ["3 of 10 done: counting", "4 of 10 done: counting, about 12 min left",
                                              "10 of 10 done: counting"]
    assert (duration(8), duration(700), duration(10_000)) == ("8 s", "12 min", "2.8 h")
