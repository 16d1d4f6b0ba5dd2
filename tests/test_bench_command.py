"""`reflect bench shapes` as a command: labels, what stands beside, and going on after an interruption."""

import json
from pathlib import Path

from command import inside, write_tiny_model
from fake_shapes import FakeSana, FakeShapesGenerator
from tiny_sana import write_tiny_sana

from reflect_core.bench import statistics
from reflect_core.bench.beside import read_beside
from reflect_core.bench.log import UNITS
from reflect_core.bench.shapes import UNSEEN
from reflect_core.presets.choice import ModelChoice
from reflect_core.search import BestOfN

RESULTS = Path(statistics.__file__).parent / "results"


def test_the_command_goes_on_where_it_stopped(tmp_path, capsys, monkeypatch):
    generators = []

    def load(self, **options):
        assert options == {"max_batch": 16}
        generators.append(FakeShapesGenerator(flawed=0.9))
        return generators[-1]
    monkeypatch.setattr(ModelChoice, "load", load)
    model = write_tiny_model(tmp_path / "model")
    arguments = ("bench", "shapes", "--model", model, "--limit", 1, "--tasks", "colors", UNSEEN, "--batch", 16,
                 "--policies", "one picture", "best of 8", "--out", tmp_path / "out", "--json", tmp_path / "all.json")
    result = inside(capsys, *arguments)
    assert result.code == 0 and "2 of 2 done" in result.err
    document = json.loads((tmp_path / "all.json").read_text())
    assert document["settings"][0]["policies"]["best of 8"] == BestOfN(8).to_json()
    assert document["machine"]["threads"] >= 1 and document["versions"]["torch"]
    assert document["settings"][0]["limit"] == 1 and document["results"]["exact"].keys() == {"one picture", "best of 8"}
    assert (tmp_path / "out" / "shapes.png").exists()
    again = inside(capsys, *arguments)
    assert again.out == result.out and generators[1].batches == []


def test_several_models_have_labels(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ModelChoice, "load", lambda self, **options: FakeShapesGenerator(flawed=0.9))
    model = write_tiny_model(tmp_path / "model")
    few = ("--limit", 1, "--tasks", "colors", "--policies", "one picture", "--flip", 0, "--out", tmp_path / "out",
           "--json", tmp_path / "all.json")
    result = inside(capsys, "bench", "shapes", "--models", model, f"other one={model}", *few)
    assert result.code == 0 and "one picture (FLUX)" in result.out and "one picture (other one)" in result.out
    assert [s["label"] for s in json.loads((tmp_path / "all.json").read_text())["settings"]] == ["FLUX", "other one"]
    assert (tmp_path / "out" / "flux" / UNITS).exists() and (tmp_path / "out" / "other-one" / UNITS).exists()
    plain = write_tiny_sana(tmp_path / "sana", reflect=False, settings={"defaults": {"width": 64, "height": 64}})
    assert "one picture (plain SANA)" in inside(
        capsys, "bench", "shapes", "--models", model, plain, *few[:-3], tmp_path / "two").out
    for arguments, said in ((("--models", model, model), "label 'FLUX' of another one"),
                            (("--models", model, "--model", model), "expected one of them"),
                            (("--lora", model), "expected --model too"), (("--models", "nowhere"), "nowhere"),
                            (("--option", "image_tokens=16"), "expected --model too"),
                            (("--models", f"A b={model}", f"a-b={model}"), "label 'a-b' of another one")):
        result = inside(capsys, "bench", "shapes", *arguments, *few)
        assert result.code == 2 and said in result.err


def test_a_second_corrector_of_a_family_shows_how_it_corrects(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ModelChoice, "load", lambda self, **options: FakeSana(flawed=0.5))
    model = write_tiny_sana(tmp_path / "model", settings={"defaults": {"width": 64, "height": 64}})
    plain = write_tiny_sana(tmp_path / "plain", reflect=False, settings={"defaults": {"width": 64, "height": 64}})
    result = inside(capsys, "bench", "shapes", "--models", model, f"one layer={model}", plain, "--limit", 1, "--tasks",
                    "colors", "--flip", 0, "--out", tmp_path / "out", "--json", tmp_path / "all.json")
    assert result.code == 0
    rows = json.loads((tmp_path / "all.json").read_text())["results"]["exact"]
    assert {"best of 64 (SANA)", "Reflect-DiT 20, K = 1 (SANA)", "best of 64 (plain SANA)"} <= rows.keys()
    assert [name for name in rows if "one layer" in name] == [f"{name} (one layer)" for name in (
        "one picture", "Reflect-DiT 4", "Reflect-DiT 8", "Reflect-DiT 20")]


def test_rows_that_are_asked_for_are_of_the_models_that_can(tmp_path, capsys, monkeypatch):
    def load(self, **options):
        made = FakeSana(flawed=0.5)
        made.max_context = 3 if self.in_context else 0
        return made
    monkeypatch.setattr(ModelChoice, "load", load)
    settings = {"defaults": {"width": 64, "height": 64}}
    models = [write_tiny_sana(tmp_path / name, reflect=name == "told", settings=settings) for name in ("told", "plain")]
    few = ("--limit", 1, "--tasks", "colors", "--flip", 0, "--out", tmp_path / "out", "--policies", "best of 4",
           "Reflect-DiT 4")
    result = inside(capsys, "bench", "shapes", "--models", *models, *few)
    assert result.code == 0 and result.out.count("Reflect-DiT 4 (SANA)") and "best of 4 (plain SANA)" in result.out
    assert "Reflect-DiT 4 (plain SANA)" not in result.out
    alone = inside(capsys, "bench", "shapes", "--model", models[1], *few)
    assert alone.code == 2 and "the model has no corrector" in alone.err


def test_an_earlier_benchmark_beside_this_one(tmp_path, capsys, monkeypatch):
    """Its rows as they were written, in one table and plot; what is measured now is all that is written."""
    monkeypatch.setattr(ModelChoice, "load", lambda self, **options: FakeSana(flawed=0.5))
    flux = write_tiny_model(tmp_path / "flux")
    sana = write_tiny_sana(tmp_path / "sana", settings={"defaults": {"width": 64, "height": 64}})
    few = ("--limit", 2, "--tasks", "colors", "--policies", "one picture", "best of 20", "--flip", 0)
    then, now, out = tmp_path / "then.json", tmp_path / "now.json", tmp_path / "out"
    first = inside(capsys, "bench", "shapes", "--model", flux, *few, "--json", then, "--out", tmp_path / "first")
    assert first.code == 0
    result = inside(capsys, "bench", "shapes", "--models", sana, "--beside", f"FLUX={then}", *few, "--json", now,
                    "--out", out)
    assert result.code == 0 and "Not measured now: the rows of FLUX." in result.out
    rows = {line.split("|")[1].strip(): line for line in result.out.splitlines() if line.startswith("| ")}
    assert {"one picture (FLUX)", "best of 20 (FLUX)", "best of 20 (SANA)"} <= rows.keys()
    before = json.loads(then.read_text())["results"]["exact"]["best of 20"]["cost"]["pictures"]
    assert f" {before:.1f} |" in rows["best of 20 (FLUX)"]
    assert json.loads(now.read_text())["models"] == ["SANA"] and (out / "shapes.png").exists()
    named = inside(capsys, "bench", "shapes", "--models", sana, "--beside", then, now, *few, "--out", out)
    assert named.code == 2 and "the label 'SANA'" in named.err
    for arguments, said in ((("--model", sana, "--beside", then), "expected --models LABEL=MODEL"),
                            (("--models", sana, "--beside", then, "--limit", 1), "another limit (1 and 2)"),
                            (("--models", sana, "--beside", tmp_path / "none.json"), "none.json: no such file"),
                            (("--models", sana, "--beside", sana / "model_index.json"), "is not what bench shapes")):
        result = inside(capsys, "bench", "shapes", *few, *arguments, "--out", tmp_path / "other")
        assert result.code == 2 and said in result.err, result.err


def test_the_published_results_can_stand_beside_others():
    for file in RESULTS.glob("*.json"):
        document = read_beside(file, "then", json.loads(file.read_text())["settings"])
        assert all(name.endswith(")") for name in document["results"]["exact"])


def test_policies_of_the_other_family_are_told_at_once(tmp_path, capsys):
    model = write_tiny_model(tmp_path / "model")
    result = inside(capsys, "bench", "shapes", "--model", model, "--policies", "Reflect-DiT 20", "--out",
                    tmp_path / "out")
    assert result.code == 2 and "'Reflect-DiT 20'" in result.err and "'ReflectionFlow 20'" in result.err


def test_the_unseen_pairs_alone_have_a_table_and_no_plot(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ModelChoice, "load", lambda self, **options: FakeShapesGenerator(flawed=0.9))
    model = write_tiny_model(tmp_path / "model")
    result = inside(capsys, "bench", "shapes", "--model", model, "--limit", 1, "--tasks", UNSEEN, "--policies",
                    "one picture", "--out", tmp_path / "out")
    assert result.code == 0 and "no part in it" in result.out


def test_interrupted_the_command_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    class Impatient(FakeShapesGenerator):
        def draw(self, requests, callback=None):
            raise KeyboardInterrupt
    monkeypatch.setattr(ModelChoice, "load", lambda self, **options: Impatient())
    model = write_tiny_model(tmp_path / "model")
    result = inside(capsys, "bench", "shapes", "--model", model, "--limit", 1, "--tasks", "colors", "--out",
                    tmp_path / "out")
    assert result.code == 130 and "the same command goes on" in result.err
