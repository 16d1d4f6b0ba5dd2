"""`reflect doctor`: what is here, what is missing and where to get it, and whether a judge answers."""

from __future__ import annotations

import json
import shutil

import pytest
from command import ROOT, inside, reflect
from fake_server import FakeServer
from tiny_vlm import write_tiny_qwen

PRESET = ROOT / "reflect_core" / "presets" / "shapes-flux"


@pytest.fixture(autouse=True)
def nothing_cached(monkeypatch, tmp_path):
    """Whatever lies in this machine's own caches is not looked at."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("REFLECT_MODELS", raising=False)


def found(told, part, name):
    return next(one for one in told[part] if one["name"] == name)


def test_what_is_installed_and_what_is_missing(capsys):
    ran = inside(capsys, "doctor", "--json")
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert found(told, "environment", "torch")["good"] is True
    assert found(told, "models", "shapes-flux")["good"] is True
    flux = found(told, "models", "flux-corrector")
    assert flux["good"] is None
    assert all(word in flux["said"] for word in ("black-forest-labs/FLUX.1-dev", "34 GB", "Non-Commercial",
                                                 "reflect download flux-corrector"))
    text = inside(capsys, "doctor").out
    assert "ok torch" in text and "-- flux-corrector" in text


def test_a_model_that_is_here(capsys, tmp_path):
    base = tmp_path / "models" / "diffusers" / "FLUX.1-dev"
    base.mkdir(parents=True)
    (base / "model_index.json").write_text("{}")
    told = json.loads(inside(capsys, "doctor", "--json", "--models", tmp_path / "models").out)
    said = found(told, "models", "flux-corrector")["said"]
    assert "diffusion-cot/FLUX-Corrector" in said and "missing: black-forest" not in said
    lora = tmp_path / "models" / "loras" / "FLUX-Corrector" / "pytorch_lora_weights.safetensors"
    lora.parent.mkdir(parents=True)
    lora.write_bytes(b"x")
    ran = inside(capsys, "doctor", "--json", "--models", tmp_path / "models")
    assert ran.code == 3 and "is not whole" in found(json.loads(ran.out), "models", "flux-corrector")["said"]
    shutil.rmtree(base)
    shutil.copytree(PRESET, base)
    shutil.copy(PRESET / "lora" / lora.name, lora)
    ran = inside(capsys, "doctor", "--json", "--models", tmp_path / "models")
    flux = found(json.loads(ran.out), "models", "flux-corrector")
    assert ran.code == 0 and flux["good"] is True and flux["more"]["lora"] == str(lora)


def test_a_judge_that_answers():
    with FakeServer().running() as fake:
        ran = reflect("doctor", "--judge", fake.url, "--judge-option", "ask=match", "--json")
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    red, blue = found(told, "judge", "red picture"), found(told, "judge", "blue picture")
    assert red["more"]["score"] > 0.8 > 0.2 > blue["more"]["score"]
    assert found(told, "judge", "cost")["more"]["judge_calls"] == 2 + 2


@pytest.mark.parametrize("settings, said", [({"sees": False}, "does not see pictures"),
                                            ({"key": "k"}, "REFLECT_KEY_127_0_0_1")])
def test_a_judge_that_does_not(capsys, settings, said):
    with FakeServer(**settings).running() as fake:
        ran = inside(capsys, "doctor", "--judge", fake.url, "--judge-option", "attempts=1")
    assert ran.code == 3 and "!! judge" in ran.out and said in ran.out


def test_a_model_of_ones_own_disk(capsys, tmp_path):
    folder = write_tiny_qwen(tmp_path / "tiny-vl", answers=True)
    ran = inside(capsys, "doctor", "--judge", folder, "--judge-option", 'checks=["Is it red?"]')
    assert ran.code == 0 and "the judge is tiny-vl, on cpu" in ran.out
    assert "each picture is asked: Is it red?" in ran.out


@pytest.mark.parametrize("arguments, said", [
    (["--judge", "me"], "is you"), (["--judge-option", "ask=match"], "without"),
    (["--models", "/nowhere"], "no such folder")])
def test_what_makes_no_sense(capsys, arguments, said):
    assert said in inside(capsys, "doctor", *arguments).error
