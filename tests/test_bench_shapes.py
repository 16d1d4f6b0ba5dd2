"""The benchmark: runs in lock-step are the ordinary runs, an interruption costs one unit, numbers add up."""

import json
from dataclasses import replace

import numpy as np
import pytest
from fake_shapes import FakeSana, FakeShapesGenerator
from PIL import Image

from reflect_core.bench import statistics
from reflect_core.bench.entrants import FLUX, SANA, choose_entrants
from reflect_core.bench.fixes import OWN, SYNTHETIC, ShuffledReflector, _kept
from reflect_core.bench.lockstep import NotDrawn, SharedGenerator, SharedVerifier, drive
from reflect_core.bench.log import UNITS, UnitLog, code_state
from reflect_core.bench.plot import lines_by_family, write_plot
from reflect_core.bench.shapes import UNSEEN, Settings, choose_prompts, run_benchmark
from reflect_core.bench.table import markdown, report
from reflect_core.presets.load import EDITORS, FAMILIES
from reflect_core.refiners import ShapesRefiner
from reflect_core.reflectors import ShapesReflector
from reflect_core.search import BestOfN, start
from reflect_core.search.registry import policy_for
from reflect_core.shapes.sample import TASKS
from reflect_core.shapes.scene import Obj
from reflect_core.types import Pair, Request, UserError
from reflect_core.verifiers import FlippingVerifier, ShapesVerifier

NAMES = ("one picture", "best of 4", "best of 20", "ReflectionFlow 4", "ReflectionFlow 20")
ROWS = choose_entrants("FluxPipeline", list(NAMES))
SETTINGS = Settings("fake", "x", limit=2, tasks=("counting", "compose", UNSEEN), steps=4,
                    policies={e.name: e.policy.to_json() for e in ROWS})


def test_runs_in_lock_step_are_the_runs_alone():
    """Every policy under both judges: same pictures, verdicts, words and costs as by itself."""
    prompts = ("two red circles left of a blue star", "three squares", "a black star and two cyan triangles")
    inner = FakeShapesGenerator(flawed=0.9, mends=0.4)
    shared = SharedGenerator(inner)
    exact = SharedVerifier(ShapesVerifier())

    def steppers(generator, exact):
        for verifier in (exact, FlippingVerifier(exact, 0.1)):
            for entrant in FLUX:
                for seed, prompt in enumerate(prompts):
                    yield start(Request(prompt, seed, steps=4), entrant.policy, generator, verifier, ShapesReflector(),
                                ShapesRefiner(), chunk=2)
    together = list(steppers(shared, exact))
    drive(together, shared)
    alone_generator = FakeShapesGenerator(flawed=0.9, mends=0.4)
    for ours, alone in zip(together, steppers(alone_generator, ShapesVerifier())):
        alone.run()
        assert ours.so_far.candidates == alone.so_far.candidates
        assert ours.so_far.stopped.kind == alone.so_far.stopped.kind
        for name in ("pictures", "denoiser_evaluations", "judge_calls"):
            assert getattr(ours.so_far.ledger.total, name) == getattr(alone.so_far.ledger.total, name)
    # What is shared was drawn once.
    assert sum(inner.batches) == shared.pictures_drawn < sum(alone_generator.batches) / 2
    assert max(inner.batches) > 20


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_is_compared_as_it_is_searched(family):
    """Above all an editor, the depth of whose pictures is bounded wherever it draws."""
    edits, own = family in EDITORS, "reflect_dit" if family == "SanaPipeline" else "reflection_flow"
    rows = [e for e in choose_entrants(family) if e.policy.name == own and not e.is_ablation]
    assert [e.policy for e in rows] == [policy_for(own, n, edits=edits) for n in (4, 8, 20)]
    assert all(getattr(e.policy, "max_depth", None) == (3 if edits else None) for e in rows)
    assert [e.name for e in choose_entrants(family, corrects=False)] == ["one picture", *(
        f"best of {n}" for n in (4, 8, 20, 64)), *(["noise + prompt 20"] if own == "reflection_flow" else [])]


def test_a_shared_generator_draws_nothing_by_itself():
    inner = FakeShapesGenerator()
    shared = SharedGenerator(inner)
    request = Request("a circle", 1)
    with pytest.raises(NotDrawn) as waiting:
        shared.draw([request, replace(request, seed=2)])
    assert [r.seed for r in waiting.value.requests] == [1, 2] and inner.batches == []
    shared.draw_now([request, replace(request, seed=2), request])
    assert inner.batches == [2]
    assert shared.draw([request])[0].picture.tobytes() == inner.draw([request])[0].picture.tobytes()


def test_an_error_of_the_generator_comes_through():
    class Broken(FakeShapesGenerator):
        def draw(self, requests, callback=None):
            raise RuntimeError("out of memory")
    shared = SharedGenerator(Broken())
    with pytest.raises(RuntimeError, match="out of memory"):
        drive([start(Request("a circle", 1), ROWS[0].policy, shared, ShapesVerifier())], shared)


@pytest.fixture(scope="module")
def units(tmp_path_factory):
    return run_benchmark(SETTINGS, ROWS, FakeShapesGenerator(flawed=0.9, mends=0.5), tmp_path_factory.mktemp("whole"))


def timeless(units):
    dropped = {"seconds"}
    return [{k: v for k, v in unit.items() if k not in dropped} for unit in units]


def test_what_a_unit_holds(units):
    assert [u["column"] for u in units] == ["counting", "compose", UNSEEN]
    for unit in units:
        assert len(unit["runs"]) == 2 * len(NAMES) * 2
        for row in unit["runs"]:
            assert len(row["curve"]) == row["pictures"] == row["judge_calls"]
            assert row["evaluations"] == 4 * row["pictures"]
            assert row["curve"][-1] == str(int(row["right"]))
            if row["judge"] == "exact":
                # It stops at its first right picture, or draws all it may.
                most = next(e.policy.most_pictures for e in FLUX if e.name == row["policy"])
                assert row["curve"] in ("0" * (row["pictures"] - 1) + "1", "0" * most)
        assert {f["source"] for f in unit["fixes"]} >= {SYNTHETIC}
        assert all(0 <= f["kept"] <= f["untouched"] for f in unit["fixes"])


def test_all_policies_begin_with_the_same_picture(units):
    for unit in units:
        for judge in ("exact", "erring"):
            firsts = {}
            for row in unit["runs"]:
                if row["judge"] == judge:
                    firsts.setdefault(row["prompt"], set()).add(row["curve"][0])
            assert all(len(first) == 1 for first in firsts.values())


class Killed(Exception):
    pass


def test_an_interruption_costs_the_unit_in_progress(units, tmp_path):
    generator = FakeShapesGenerator(flawed=0.9, mends=0.5)

    def kill(done, total, text):
        if done > 1.2:
            raise Killed
    with pytest.raises(Killed):
        run_benchmark(SETTINGS, ROWS, generator, tmp_path, kill)
    lines = (tmp_path / UNITS).read_bytes().splitlines(keepends=True)
    assert len(lines) == 2
    # A kill in the middle of a write leaves half a line.
    (tmp_path / UNITS).write_bytes(b"".join(lines) + b'{"unit": 1, "col')
    seen = []
    again = run_benchmark(SETTINGS, ROWS, generator, tmp_path, lambda done, total, text: seen.append((done, total)))
    assert timeless(again) == timeless(units)
    assert min(done for done, _ in seen) >= 1 and seen[-1] == (3, 3)
    size = (tmp_path / UNITS).stat().st_size
    batches = len(generator.batches)
    assert timeless(run_benchmark(SETTINGS, ROWS, generator, tmp_path)) == timeless(units)
    assert len(generator.batches) == batches and (tmp_path / UNITS).stat().st_size == size


def test_other_settings_do_not_mix(tmp_path):
    run_benchmark(replace(SETTINGS, limit=1, tasks=("colors",)), ROWS, FakeShapesGenerator(), tmp_path)
    before = (tmp_path / UNITS).read_bytes()
    with pytest.raises(UserError, match="other limit, tasks"):
        run_benchmark(SETTINGS, ROWS, FakeShapesGenerator(), tmp_path)
    assert (tmp_path / UNITS).read_bytes() == before
    mine = replace(SETTINGS, limit=1, tasks=("colors",))
    with pytest.raises(UserError, match="other evaluation_set"):
        run_benchmark(replace(mine, evaluation_set="of old"), ROWS, FakeShapesGenerator(), tmp_path)
    with pytest.raises(UserError, match="other policies"):
        run_benchmark(replace(mine, policies={**mine.policies, NAMES[0]: BestOfN(2).to_json()}), ROWS,
                      FakeShapesGenerator(), tmp_path)
    for damaged in (before.replace(b'{"unit"', b'["unit"'), before.split(b"\n")[0] + b"\n[]\n", b"[1]\n"):
        (tmp_path / UNITS).write_bytes(damaged)
        with pytest.raises(UserError, match="line [12] of"):
            run_benchmark(mine, ROWS, FakeShapesGenerator(), tmp_path)
        assert (tmp_path / UNITS).read_bytes() == damaged


def test_only_one_process_at_a_time_writes(tmp_path):
    with UnitLog(tmp_path, {"a": 1}), pytest.raises(UserError, match="written by another process"):
        UnitLog(tmp_path, {"a": 1})
    UnitLog(tmp_path, {"a": 1}).__exit__()


def test_a_full_disk_is_told_and_costs_the_unit_in_progress(tmp_path, monkeypatch):
    with UnitLog(tmp_path, {"a": 1}) as log:
        log.append({"unit": 0, "column": "colors", "runs": [], "fixes": []})
        before = (tmp_path / UNITS).read_bytes()

        def full(handle):
            raise OSError(28, "No space left on device")
        monkeypatch.setattr("reflect_core.bench.log.os.fsync", full)
        with pytest.raises(UserError, match="No space left.*what is finished is kept"):
            log.append({"unit": 1})
    (tmp_path / UNITS).write_bytes(before + b'{"unit": 1, "co')
    monkeypatch.undo()
    with UnitLog(tmp_path, {"a": 1}) as log:
        assert [unit["unit"] for unit in log.units] == [0]
    assert (tmp_path / UNITS).read_bytes() == before


def test_what_cannot_be_done_is_told_before_the_log_is_begun(tmp_path):
    class Plain(FakeShapesGenerator):
        max_context = 0
    for settings, generator, said in (
            (replace(SETTINGS, width=1024, height=1024), FakeShapesGenerator(), "draws 1024x1024"),
            (replace(SETTINGS, steps=0), FakeShapesGenerator(), "steps must be"),
            (replace(SETTINGS, guidance=float("nan")), FakeShapesGenerator(), "guidance must be"),
            (replace(SETTINGS, seed=-1), FakeShapesGenerator(), "the seed must be"),
            (SETTINGS, Plain(), "'ReflectionFlow 4' corrects pictures")):
        with pytest.raises(UserError, match=said):
            run_benchmark(settings, ROWS, generator, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_units_of_two_states_of_the_code_are_not_passed_off_as_one(units):
    assert len({unit["code"] for unit in units}) == 1
    assert "CAUTION" not in report(statistics.summarise(units), 0.1)
    mixed = [{**units[0], "code": "of old"}, *units[1:]]
    assert "CAUTION: 2 states of the code" in report(statistics.summarise(mixed), 0.1)


def test_the_state_of_the_code_is_of_what_results_depend_on(tmp_path):
    for name in ("shapes/detector.py", "cli/run.py", "bench/table.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a = 1")
    before = code_state(tmp_path)
    for name, changes in (("cli/run.py", False), ("bench/table.py", False), ("shapes/detector.py", True)):
        (tmp_path / name).write_text("a = 2")
        assert (code_state(tmp_path) != before) == changes
    assert code_state() != before


def test_prompts_are_all_there_and_limited_evenly():
    every = choose_prompts()
    assert list(every) == [*TASKS, UNSEEN] and all(len(prompts) >= 60 for prompts in every.values())
    assert all(p.unseen == (column == UNSEEN) for column, prompts in every.items() for p in prompts)
    few = choose_prompts(6, ["compose", UNSEEN])
    assert [len(p) for p in few.values()] == [6, 6]
    assert {p.task for p in few[UNSEEN]} == {"colors", "color_attr", "compose"}


def blank():
    return Image.new("RGB", (64, 64), "white")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Units of a model of each family, the one with all its ablations."""
    units = []
    for label, entrants, generator in (("FLUX", ROWS, FakeShapesGenerator(flawed=0.9, mends=0.5)),
                                       ("SANA", SANA, FakeSana(flawed=0.9, mends=0.9, spoils=0.0))):
        settings = Settings("fake", "x", label, limit=6, tasks=("counting", "compose"), steps=4,
                            policies={e.name: e.policy.to_json() for e in entrants})
        units += run_benchmark(settings, entrants, generator, tmp_path_factory.mktemp(label))
    return units


def test_both_families_in_one_table_and_plot(both, tmp_path):
    summary = statistics.summarise(both)
    assert summary["models"] == ["FLUX", "SANA"] and set(summary["fixes"]) == {"FLUX", "SANA"}
    text = report(summary, 0.1)
    for name in ("ReflectionFlow 20 (FLUX)", "best of 20 (SANA)", "Reflect-DiT 20, words only (SANA)"):
        assert f"| {name} " in text
    assert "compose: Reflect-DiT 20 (SANA) minus best of 20 (SANA) = " in text
    assert "compose: Reflect-DiT 20 (SANA) minus Reflect-DiT 20, shuffled words (SANA) = " in text
    assert "(SANA) minus best of 20 (FLUX)" not in text
    tall = Image.open(write_plot(summary, tmp_path / "plot.png", 0.1))
    assert tall.height > tall.width > 1000


def test_models_of_one_family_are_compared_and_share_their_panels(both, tmp_path):
    """A tuned model, the one that it was tuned from, and another tuning."""
    sana = [u for u in both if u["model"] == "SANA"]
    plain = [{**u, "model": "plain", "runs": [r for r in u["runs"] if r["policy"].startswith(("one", "best"))],
              "fixes": []} for u in sana]
    other = [{**u, "model": "one layer"} for u in sana]
    families = {"FLUX": "a", "plain": "b", "SANA": "b", "one layer": "b"}
    summary = statistics.summarise([u for u in both if u["model"] == "FLUX"] + plain + sana + other, families)
    found = {(d["policy"], d["against"]) for d in summary["differences"]["exact"]}
    assert ("Reflect-DiT 20 (SANA)", "best of 20 (plain)") in found
    assert ("Reflect-DiT 20 (SANA)", "Reflect-DiT 20 (one layer)") in found
    assert ("Reflect-DiT 20 (one layer)", "Reflect-DiT 20 (SANA)") not in found
    assert not any("(FLUX)" in a and "(FLUX)" not in b for a, b in found)
    drawn = {(line.kind, line.model, line.first) for lines in lines_by_family(summary).values() for line in lines}
    assert drawn >= {("best of n", "SANA", True), ("best of n", "plain", False), ("Reflect-DiT", "one layer", False)}
    assert ("best of n", "one layer", False) not in drawn
    assert Image.open(write_plot(summary, tmp_path / "plot.png", 0.1)).width > 1000


def test_ablations_show_what_is_missing(both):
    """By a generator that mends what it is told, from the last picture that it sees."""
    results = statistics.summarise(both)["results"]
    overall = {name: row["mean of tasks"]["mean"] for name, row in results["exact"].items()}
    told = overall["Reflect-DiT 20 (SANA)"]
    assert told > overall["Reflect-DiT 20, pictures only (SANA)"]
    assert not any("Reflect-DiT 20, " in name for name in results["erring"])


def test_shuffled_words_are_of_other_prompts():
    prompts = choose_prompts(5, ["compose"])["compose"]
    exact = SharedVerifier(ShapesVerifier())
    reflector = ShuffledReflector(prompts, 7, exact)
    assert len(reflector.words) == 5
    for prompt, _ in reflector.words:
        picture = FakeShapesGenerator(flawed=1.0).draw([Request(prompt, 3)])[0].picture
        verdict = exact.judge(prompt, [picture])[0]
        told = reflector.reflect(prompt, [picture], [verdict])[0]
        assert told == "" if verdict.accepted else told in [words for of, words in reflector.words if of != prompt]


def test_a_generator_beside_another_draws_no_plain_picture_again():
    first, second = FakeSana(), FakeSana()
    shared = SharedGenerator(first)
    view = SharedGenerator(second, shared)
    plain, told = Request("a circle", 1), Request("a circle", 1, context=(Pair("add a circle", 0, blank()),))
    shared.draw_now([plain])
    view.draw_now([plain, told])
    assert second.batches == [1] and view.pictures_drawn == 1
    with pytest.raises(NotDrawn):
        shared.draw([told])


# Numbers.

def test_the_summary_adds_up(units):
    summary = statistics.summarise(units)
    rows = [{**r, "column": u["column"]} for u in units for r in u["runs"]]
    for judge in ("exact", "erring"):
        for name in NAMES:
            mine = [r for r in rows if (r["judge"], r["policy"]) == (judge, name)]
            seen = [r for r in mine if r["column"] != UNSEEN]
            row = summary["results"][judge][name]
            assert row["mean of prompts"]["mean"] == np.mean([r["right"] for r in seen])
            assert row["success"][UNSEEN]["mean"] == np.mean([r["right"] for r in mine if r["column"] == UNSEEN])
            assert row["cost"]["pictures"] == np.mean([r["pictures"] for r in seen])
            curve = summary["curves"][judge][name]["overall"]
            assert curve["success"][-1] == pytest.approx(row["mean of tasks"]["mean"])
            assert curve["evaluations"][-1] == pytest.approx(row["cost"]["evaluations"])
    results = summary["results"]["exact"]
    for d in summary["differences"]["exact"]:
        if d["on"] == "overall":
            ours, theirs = (results[d[k]]["mean of tasks"]["mean"] for k in ("policy", "against"))
            assert d["difference"] == pytest.approx(ours - theirs)
            assert d["interval"][0] <= d["difference"] <= d["interval"][1]
    cells = summary["fixes"][""]["by task"]["all"]
    fixes = [f for u in units for f in u["fixes"]]
    of_tasks = [f for f in fixes if not f["unseen"]]
    assert cells[OWN]["count"] + cells[SYNTHETIC]["count"] == len(of_tasks) < len(fixes)
    own = [f for f in of_tasks if f["source"] == OWN]
    assert cells[OWN]["difference"] == pytest.approx(np.mean([f["fixed"] - f["fresh"] for f in own]))
    assert cells[OWN]["prompts"] == len({f["prompt"] for f in own}) <= len(own)
    assert sum(c[OWN]["count"] for k, c in summary["fixes"][""]["by kind"].items() if k != "all") == cells[OWN]["count"]
    json.dumps(summary)


def test_drift_counts_objects_that_stayed():
    circle, star = Obj("circle", "red", 20, 20, 7), Obj("star", "blue", 45, 45, 7)
    assert _kept([circle, star], [star, replace(circle, x=22.5, y=21)]) == 2
    assert _kept([circle], [replace(circle, x=24)]) == 0
    assert _kept([circle], [replace(circle, colour="blue")]) == 0
    # One object is not two.
    assert _kept([circle, replace(circle, x=21)], [circle]) == 1


def test_the_report_and_the_plot(units, tmp_path):
    summary = statistics.summarise(units)
    text = report(summary, 0.1)
    for name in NAMES:
        assert text.count(f"| {name} ") == 2
    assert "compose: ReflectionFlow 20 minus best of 20 = " in text and "| counting" in text
    assert "own failures: fix minus fresh = " in text
    only_unseen = report(statistics.summarise(units[2:]), 0.1)
    assert "| unseen" in only_unseen and "mean of tasks" not in only_unseen and "nan" not in only_unseen
    assert Image.open(write_plot(summary, tmp_path / "plots" / "plot.png", 0.1)).width > 1000


def test_markdown_is_aligned():
    lines = markdown(["name", "n"], [["a", "1"], ["longer", "20"]]).splitlines()
    assert lines == ["| name   |  n |", "|--------|---:|", "| a      |  1 |", "| longer | 20 |"]
