"""Bad input: one clear line, exit code 2, no traceback, and nothing that is on disk is harmed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command import ENVIRONMENT, ROOT, contents, inside, reflect, write_tiny_model
from tiny_flux import tiny_lora, tiny_transformer

from reflect_core.search.header import Header, header_to_json
from reflect_core.types import Request

PROMPT = "two red circles"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def broken(model, tmp_path):
    """A copy of the model to break."""
    return shutil.copytree(model, tmp_path / "broken")


# What is wrong without a look at the model is told at once, so these are cheap as processes.

@pytest.mark.parametrize("arguments, said", [
    (["run", "two purple dogs"], "'dogs'"),
    (["run", "two purple dogs"], "I can draw circles, squares"),
    (["run", "two purple dogs"], "there is --judge me"),
    (["run", ""], "the prompt is empty"),
    (["run", "   "], "the prompt is empty"),
    (["run", "seven red circles"], "'seven'"),
    (["run", PROMPT, "--pictures", "-5"], "pictures must be a whole number above 0; got -5"),
    (["run", PROMPT, "--pictures", "0"], "pictures must be a whole number above 0; got 0"),
    (["run", PROMPT, "--seconds", "-1"], "seconds must be a number above 0; got -1"),
    (["run", PROMPT, "--evaluations", "-1"], "denoiser_evaluations must be"),
    (["run", PROMPT, "--pictures", "many"], "argument --pictures: invalid int value: 'many'"),
    (["run", PROMPT, "--policy", "luck"], "argument --policy: invalid choice: 'luck'"),
    (["run", PROMPT, "--set", "parents=luck"], "parents of reflection_flow must be one of"),
    (["run", PROMPT, "--set", "parent=chain"], "parent"),
    (["run", PROMPT, "--set", "parents"], "expected NAME=VALUE"),
    (["run", PROMPT, "--judge", "gpt"], "there is no judge 'gpt'"),
    (["run", PROMPT, "--model", "no-such-model"], "neither a bundled model nor a folder"),
    (["run", PROMPT, "--model", "~nobody-of-this-name/model"], "neither a bundled model nor a folder"),
    (["run", PROMPT, "--option", "device=cpu"], "try --device"),
    (["run", PROMPT, "--option", "path=x"], "try --model"),
    (["run", PROMPT, "--steps", "9" * 20], "expected 1,000 at most"),
    (["run", PROMPT, "--size", "99999"], "expected 16,384 at most"),
    (["run", PROMPT, "--out", "x" * 300], "cannot be made"),
    (["run"], "the following arguments are required: PROMPT"),
    (["draw", PROMPT], "invalid choice: 'draw'"),
    ([], "required: COMMAND"),
    (["resume", "no-such-run"], "there is no record in no-such-run"),
    (["replay", "no-such-run"], "there is no record in no-such-run"),
    (["show", "no-such-run"], "there is no record in no-such-run"),
    (["bench", "shapes", "--limit", "0"], "the limit is 0"),
    (["bench", "shapes", "--policies", "luck"], "there is no policy 'luck'"),
    (["bench", "shapes", "--tasks", "luck"], "there is no task 'luck'"),
    (["bench", "shapes", "--flip", "2"], "--flip is 2"),
    (["bench", "shapes", "--steps", "0"], "steps must be a whole number from 1 on"),
    (["bench", "shapes", "--guidance", "nan"], "guidance must be"),
    (["bench", "shapes", "--seed", "-1"], "the seed must be"),
    (["bench", "shapes", "--option", "max_batch=4"], "in a benchmark --batch does"),
    (["bench", "shapes", "--json", "."], "try another --json"),
    (["bench", "shapes", "--model", "no-such-model", "--json", "all.json"], "neither a bundled model nor a folder"),
    (["bench", "speed", "--pictures", "0"], "--pictures and --repeats"),
])
def test_told_before_anything_is_loaded(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said in inside(capsys, *arguments).error
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("arguments", [["run", "two purple dogs"], ["run", ""], ["run", PROMPT, "--pictures", "-5"]])
def test_a_process_says_so_too_and_loads_no_torch(arguments, tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    result = reflect(*arguments, "--json", cwd=tmp_path)
    assert json.loads(result.out)["error"] in result.error
    assert contents(tmp_path).keys() == {"torch.py"}


@pytest.mark.parametrize("where", ["file", "file/below/it"])
def test_an_output_folder_that_cannot_be_written(where, model, capsys, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "file" in inside(capsys, "run", PROMPT, "--model", model, "--out", tmp_path / where).error
    assert contents(tmp_path) == {"file": b"mine"}


def test_an_output_folder_that_holds_a_record(model, capsys, tmp_path):
    (tmp_path / "run.jsonl").write_text("something")
    assert "already holds a record" in inside(capsys, "run", PROMPT, "--model", model, "--out", tmp_path).error
    assert contents(tmp_path) == {"run.jsonl": b"something"}


@pytest.mark.parametrize("name", ["index.html", "tree.png", "look.png"])
def test_an_output_folder_that_holds_something_of_a_run_s_names(name, model, capsys, tmp_path):
    """`--out .` in the folder of a web page must not cost the page."""
    (tmp_path / name).write_text("mine")
    assert f"already holds {name}" in inside(capsys, "run", PROMPT, "--model", model, "--out", tmp_path).error
    assert contents(tmp_path) == {name: b"mine"}


@pytest.mark.parametrize("path, said", [
    ("file", "cannot be written"), ("file/results.json", "cannot be written"), (".", "cannot be written")])
def test_results_that_cannot_be_written_are_told_before_the_work(path, said, capsys, tmp_path, model):
    (tmp_path / "file").write_text("mine")
    out = ["--json", tmp_path / path] if path != "file" else ["--out", tmp_path / path]
    extra = [] if path == "file" else ["--out", tmp_path / "out"]
    result = inside(capsys, "bench", "shapes", "--limit", 1, "--tasks", "colors", "--policies", "one picture",
                    "--model", model, *out, *extra)
    assert said in result.error
    assert contents(tmp_path) == {"file": b"mine"}


# What is wrong with the model.

def refused(capsys, tmp_path, *arguments) -> str:
    before = contents(tmp_path)
    error = inside(capsys, "run", PROMPT, "--pictures", 2, "--out", tmp_path / "run", *arguments).error
    assert contents(tmp_path) == before
    return error


@pytest.mark.parametrize("missing", ["model_index.json", "vae/config.json", "tokenizer/tokenizer.json",
                                     "transformer/diffusion_pytorch_model.safetensors",
                                     "scheduler/scheduler_config.json"])
def test_a_model_that_misses_a_file(broken, missing, capsys, tmp_path):
    (broken / missing).unlink()
    assert str(broken / missing.split("/")[0]) in refused(capsys, tmp_path, "--model", broken)


def test_a_model_that_holds_a_pickle(broken, capsys, tmp_path):
    (broken / "vae" / "pytorch_model.bin").write_bytes(b"\x80\x04")
    error = refused(capsys, tmp_path, "--model", broken)
    assert "pytorch_model.bin" in error and "pickle" in error


def test_a_truncated_safetensors_file(broken, capsys, tmp_path):
    file = broken / "transformer" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    error = refused(capsys, tmp_path, "--model", broken)
    assert str(file) in error and "not a whole safetensors file" in error


def test_a_lora_for_another_architecture(model, capsys, tmp_path):
    lora = tiny_lora(tiny_transformer(attention_head_dim=32, axes_dims_rope=(8, 12, 12))).save(tmp_path / "other")
    error = refused(capsys, tmp_path, "--model", model, "--lora", lora)
    assert "lora_A.weight has shape (4, 64)" in error and "needs (4, 32)" in error, error


def test_a_lora_that_is_not_there_cut_short_or_a_pickle(model, capsys, tmp_path):
    assert "no such file" in refused(capsys, tmp_path, "--model", model, "--lora", tmp_path / "none.safetensors")
    whole = tiny_lora(tiny_transformer()).save(tmp_path / "lora.safetensors")
    whole.write_bytes(whole.read_bytes()[:2000])
    assert "not a whole safetensors file" in refused(capsys, tmp_path, "--model", model, "--lora", whole)
    (tmp_path / "lora.bin").write_bytes(b"\x80\x04")
    assert "pickle" in refused(capsys, tmp_path, "--model", model, "--lora", tmp_path / "lora.bin")


@pytest.mark.parametrize("arguments, said", [
    (["--size", "32"], "64x64 only"), (["--size", "big"], "the size is 'big'"), (["--steps", "0"], "steps must be"),
    (["--seed", "-1"], "the seed must be"), (["--chunk", "0"], "chunk must be"),
    (["--option", "text_joins=search"], "no option 'text_joins'"), (["--option", "max_batch=0"], "max_batch"),
    (["--device", "abacus"], "the device 'abacus' cannot be used"),
    (["--option", "encoder_device=abacus"], "try --option encoder_device=cpu")])
def test_settings_that_make_no_sense(arguments, said, model, capsys, tmp_path):
    assert said in refused(capsys, tmp_path, "--model", model, *arguments)


def test_a_model_without_a_corrector_is_told_what_it_can_do(capsys, tmp_path):
    plain = write_tiny_model(tmp_path / "plain", lora=False)
    error = refused(capsys, tmp_path, "--model", plain)
    assert "best_of_n" in error


# What is wrong with a record, or behind stdout.

@pytest.mark.parametrize("change, said", [
    ({"settings": {}}, "does not say which model drew it"),
    ({"settings": {"model": "x"}}, "does not say which model drew it"),
    ({"settings": {"model": {"folder": "shapes-flux", "dtype": "float99"}}}, "dtype was 'float99'"),
    ({"settings": {"model": {"folder": "shapes-flux", "device": 3}}}, "device was 3"),
    ({"settings": {"model": {"folder": "shapes-flux", "options": "no"}}}, "options was 'no'"),
    ({"settings": {"model": {"folder": "shapes-flux"}, "judge": ["me"]}}, "there is no judge ['me']"),
    ({"settings": []}, "the header's settings must be a JSON object"),
    ({"policy": "luck"}, "the header's policy must be a JSON object"),
])
def test_a_record_that_something_else_made(change, said, capsys, tmp_path):
    """Refused before a model is loaded, whatever the header says."""
    header = header_to_json(Header(Request(PROMPT, 1), {"name": "best_of_n"}))
    (tmp_path / "run.jsonl").write_text(json.dumps({**header, **change}) + "\n")
    before = contents(tmp_path)
    assert said in inside(capsys, "resume", tmp_path).error
    assert contents(tmp_path) == before


def to_stdout(stdout, *arguments):
    """Exit code and stderr of a command whose stdout is this."""
    done = subprocess.run([sys.executable, "-m", "reflect_core", *map(str, arguments)], stdout=stdout,
                          stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, cwd=ROOT, timeout=120)
    return done.returncode, done.stderr


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no /dev/full here")
@pytest.mark.parametrize("arguments", [["--help"], ["show", "no-such-run", "--json"]])
def test_a_full_disk_behind_stdout(arguments):
    with open("/dev/full", "w") as full:
        code, said = to_stdout(full, *arguments)
    assert code == 2 and said.startswith("error: ") and "Traceback" not in said and "Exception" not in said


@pytest.mark.parametrize("arguments, codes", [(["--help"], (0, 1)), (["show", "no-such-run", "--json"], (2,))])
def test_nobody_who_reads_stdout(arguments, codes):
    """`reflect ... | head`: no word about it, and no second error when the interpreter ends.

    argparse itself swallows the error where stdout has no buffer.
    """
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        found, said = to_stdout(pipe, *arguments)
    assert found in codes and "Traceback" not in said and "Exception" not in said and "Broken" not in said
