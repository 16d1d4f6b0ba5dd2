"""The command line with a model of the SANA family: run, resume, replay."""

import json

import pytest
from command import reflect
from tiny_sana import write_tiny_sana

from reflect_core.search import ReflectDiTSearch, load


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_sana(tmp_path_factory.mktemp("sana"), settings={
        "defaults": {"width": 64, "height": 64, "steps": 2, "guidance": 4.5}, "options": {"image_tokens": 16}})


def test_run_and_replay(folder, tmp_path):
    """Its paper's search is what a model is run with."""
    ran = reflect("run", "two red circles", "--model", folder, "--pictures", "5", "--out", tmp_path / "run", "--json")
    assert ran.code == 3, ran.err
    told = json.loads(ran.out)
    assert told["pictures"] == 5 and not told["accepted"], "random weights draw no circles"
    _, run = load(tmp_path / "run")
    assert [len(c.request.context) for c in run.candidates][:4] == [0, 1, 2, 3]
    again = reflect("replay", tmp_path / "run")
    assert again.code == 0 and "came out the same, bit for bit" in again.out, again.out + again.err


def test_the_bundled_model_draws_until_it_is_right(tmp_path):
    """As the README says it: its own search, its own size and steps."""
    ran = reflect("run", "two red circles left of a blue star", "--model", "shapes-sana", "--out", tmp_path / "run",
                  "--json")
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    header, run = load(tmp_path / "run")
    assert told["accepted"] and header.policy["name"] == "reflect_dit" and header.policy["context"] == 3
    assert [len(c.request.context) for c in run.candidates][:4] == [0, 1, 2, 3][:told["pictures"]]


def test_plain_sana_draws_anew(tmp_path):
    folder = write_tiny_sana(tmp_path / "sana", reflect=False, settings={
        "defaults": {"width": 64, "height": 64, "steps": 2, "guidance": 4.5}})
    ran = reflect("run", "two red circles", "--model", folder, "--pictures", "2", "--out", tmp_path / "run", "--json")
    assert ran.code == 3, ran.err
    header, run = load(tmp_path / "run")
    assert header.policy["name"] == "best_of_n" and not any(c.request.context for c in run.candidates)


def test_official_is_the_search_of_the_models_own_paper(folder, tmp_path):
    ran = reflect("run", "two red circles", "--model", folder, "--policy", "official", "--out", tmp_path / "run",
                  "--json", "--pictures", "3")
    assert ran.code == 3, ran.err
    header, run = load(tmp_path / "run")
    assert header.policy == ReflectDiTSearch.official().to_json() and header.settings["model"]["options"] == {}
    assert json.loads(ran.out)["best"]["id"] == 2, "the last one"
    plain = write_tiny_sana(tmp_path / "sana", reflect=False)
    none = reflect("run", "two red circles", "--model", plain, "--policy", "official", "--out", tmp_path / "none")
    assert none.code == 2 and "this model corrects nothing" in none.error


def test_a_policy_of_the_other_family(folder, tmp_path):
    flux = reflect("run", "two red circles", "--policy", "reflect_dit", "--out", tmp_path / "flux")
    assert "it takes 1" in flux.error
