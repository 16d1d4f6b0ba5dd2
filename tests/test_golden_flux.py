"""The forward agrees with the official implementation's numbers; check_golden.py says when it does not."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from check_golden import BOUND, check, main
from safetensors import safe_open
from safetensors.torch import save_file

GOLDEN = Path(__file__).parent / "golden" / "flux_corrector_transformer.safetensors"


def rewrite(target: Path, change=None, metadata=None) -> Path:
    with safe_open(str(GOLDEN), "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        kept = file.metadata()
    if change:
        change(tensors)
    save_file(tensors, str(target), metadata=kept if metadata is None else metadata)
    return target


@pytest.fixture(scope="module")
def differences():
    return check(GOLDEN)


@pytest.mark.parametrize("case", ["published_setting", "position_shift", "masked_condition",
                                  "lora_on_all_tokens",
                                  "no_condition"])
def test_case_agrees(differences, case):
    assert differences[case] < BOUND


def test_every_case_of_the_file_is_checked(differences):
    with safe_open(str(GOLDEN), "pt") as file:
        cases = {key.split(".")[0] for key in file.keys() if key.endswith(".output")}
    assert set(differences) == cases


def test_script_exits_0_from_any_directory(tmp_path):
    script = Path(__file__).parent / "check_golden.py"
    done = subprocess.run([sys.executable, str(script), str(GOLDEN)], cwd=tmp_path, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    assert "published_setting" in done.stdout


def test_a_changed_output_exits_1(tmp_path, capsys):
    def change(tensors):
        tensors["position_shift.output"][0, 0, 0] += 3e-5

    assert main([str(GOLDEN), str(rewrite(tmp_path / "g.safetensors", change))]) == 1
    assert "above" in capsys.readouterr().out


def test_nan_is_not_agreement(tmp_path):
    def change(tensors):
        tensors["position_shift.hidden_states"][0, 0, 0] = torch.nan

    assert main([str(rewrite(tmp_path / "g.safetensors", change))]) == 1


def test_a_file_without_cases_is_no_agreement(tmp_path, capsys):
    def change(tensors):
        for key in [key for key in tensors if not key.startswith(("weights.", "lora."))]:
            del tensors[key]

    assert main([str(rewrite(tmp_path / "g.safetensors", change))]) == 2
    assert "no case" in capsys.readouterr().err
    assert main([str(rewrite(tmp_path / "o.safetensors", lambda t: t.pop("position_shift.output")))]) == 2
    assert "no position_shift.output" in capsys.readouterr().err


def test_the_smallest_file_of_the_layout(tmp_path):
    """Only `config` is needed: no alpha means the rank, no flags the published ones, no LoRA none."""
    def only(*cases):
        def change(tensors):
            for key in [key for key in tensors if not key.startswith(("weights.", *cases))]:
                del tensors[key]
        return change

    with safe_open(str(GOLDEN), "pt") as file:
        config = {"config": file.metadata()["config"], "format": "pt"}
    published = rewrite(tmp_path / "p.safetensors", only("lora.", "published_setting."), config)
    plain = rewrite(tmp_path / "n.safetensors", only("no_condition."), config)
    assert main([str(published), str(plain)]) == 0


def test_a_shape_that_would_broadcast_is_no_agreement(tmp_path, capsys):
    def change(tensors):
        tensors["position_shift.output"] = tensors["position_shift.output"][..., :1].clone()

    assert main([str(rewrite(tmp_path / "g.safetensors", change))]) == 2
    assert "gives the shape" in capsys.readouterr().err


def test_a_lora_that_does_not_fit_is_named(tmp_path, capsys):
    def change(tensors):
        tensors["lora.transformer.x_embedder.lora_B.weight"] = torch.zeros(3, 4)

    assert main([str(rewrite(tmp_path / "g.safetensors", change)), str(GOLDEN)]) == 2
    said = capsys.readouterr()
    assert "transformer.x_embedder.lora_B.weight has shape (3, 4)" in said.err and "g.safetensors" in said.err
    assert f"{GOLDEN}\n" in said.out and "no_condition" in said.out


def test_unreadable_files_exit_2_with_one_message(tmp_path, capsys):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(GOLDEN.read_bytes()[:5000])
    for path, word in ((cut, "whole"), (tmp_path / "none.safetensors", "no such file"),
                       (rewrite(tmp_path / "m.safetensors", metadata={"format": "pt"}), "config"),
                       (rewrite(tmp_path / "u.safetensors", metadata={"config": '{"depth": 3}'}), "family"),
                       (rewrite(tmp_path / "w.safetensors", lambda t: t.pop("weights.x_embedder.bias")),
                        "does not fit")):
        assert main([str(path)]) == 2
        error = capsys.readouterr().err
        assert word in error and str(path) in error and "Traceback" not in error
