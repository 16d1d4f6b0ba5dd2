"""Reward models, ensembles and audits as judges of a run."""

from __future__ import annotations

import json

import pytest
from command import inside, reflect
from fake_server import FakeServer
from tiny_rewards import picture, write_head, write_tiny_clip

from reflect_core.judges import find_judge
from reflect_core.search import load
from reflect_core.types import UserError

PROMPT = "a red circle left of a blue star"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rewards")
    write_tiny_clip(folder / "clip")
    write_head(folder / "head.safetensors", 16)
    return folder


def test_a_reward_by_name(clip):
    judge = find_judge("clip-score", {"folder": str(clip / "clip"), "threshold": 0.9})
    assert judge.connect() == [f"the judge clip-score is {clip / 'clip'}, on cpu"] and judge.connect() == []
    verdict = judge.actors().verifier.judge(PROMPT, [picture(1)])[0]
    assert verdict.details["reward"] == "CLIPScore" and judge.actors().reflector.reflect(PROMPT, [1], [verdict]) == [""]
    again = find_judge(json.loads(json.dumps(judge.settings())))
    assert again.actors().verifier.judge(PROMPT, [picture(1)])[0].score == pytest.approx(verdict.score, abs=1e-6)


def test_an_ensemble_shares_its_encoders_and_speaks_through_who_has_words(clip):
    with FakeServer().running() as fake:
        members = [{"judge": "clip-score", "options": {"folder": str(clip / "clip")}},
                   {"judge": "aesthetic", "options": {"folder": str(clip / "clip"),
                                                      "head": str(clip / "head.safetensors")}, "weight": 2},
                   {"judge": fake.url, "options": {"ask": "match"}}]
        judge = find_judge("ensemble", {"members": members, "threshold": 0.99})
        judge.prepare(PROMPT)
        actors = judge.actors()
        verdict = actors.verifier.judge(PROMPT, [picture(1)])[0]
        weights = {name: one["weight"] for name, one in verdict.details["members"].items()}
        assert weights == {"clip-score": 0.25, "aesthetic": 0.5, "server": 0.25}
        scores = [one["score"] for one in verdict.details["members"].values()]
        assert verdict.score == pytest.approx(0.25 * scores[0] + 0.5 * scores[1] + 0.25 * scores[2])
        assert actors.reflector.reflect(PROMPT, [picture(1)], [verdict])[0].startswith("Add red")
        encoders = [judge.members[name].actors().verifier.encoder for name in ("clip-score", "aesthetic")]
        assert encoders[0] is encoders[1]
        # The judge call of each, and the probe's two.
        assert actors.verifier.spent.judge_calls == 3 + 2
        assert json.dumps(judge.settings())


def test_a_run_is_audited_and_the_report_says_so(clip, tmp_path):
    options = ["--audit", "clip-score", "--audit-option", f"folder={clip / 'clip'}"]
    ran = reflect("run", PROMPT, "--policy", "best_of_n", "--pictures", "6", "--set", "early_stop=false", *options,
                  "--out", tmp_path / "run", "--json")
    assert ran.code in (0, 3), ran.err
    told = json.loads(ran.out)
    assert told["audit"]["words"] and all(c["audit"] is not None for c in told["candidates"])
    header, run = load(tmp_path / "run")
    assert header.settings["audit"]["name"] == "clip-score" and header.settings["judge"] == "shapes"
    assert run.ledger.total.judge_calls == 12
    assert reflect("show", tmp_path / "run").code == 0


@pytest.mark.parametrize("name, options, said", [
    ("clip-score", {}, "lacks the option folder"),
    ("clip-score", {"folder": "/nowhere"}, "config.json: no such file"),
    ("clip-score", {"folder": "CLIP", "shine": 1}, "no option 'shine'"),
    ("clip-score", {"folder": "CLIP", "dtype": "int3"}, "option dtype is 'int3'"),
    ("aesthetic", {"folder": "CLIP"}, "needs the option 'head'"),
    ("ensemble", {}, "expected a list of two or more"),
    ("ensemble", {"members": [{"judge": "shapes"}]}, "expected a list of two or more"),
    ("ensemble", {"members": [{"judge": "shapes"}, {"judge": "nobody"}]}, "there is no judge 'nobody'"),
    ("ensemble", {"members": [{"judge": "shapes"}, {"judge": "shapes", "weights": 1}]}, "has 'weights'"),
    ("ensemble", {"members": [{"judge": "shapes"}, {"judge": "shapes", "weight": 0}]}, "expected a number above 0"),
])
def test_what_cannot_be(clip, name, options, said):
    options = {k: str(clip / "clip") if v == "CLIP" else v for k, v in options.items()}
    with pytest.raises(UserError, match=said):
        find_judge(name, options).actors()


def test_the_audit_alone_is_no_judge(capsys, tmp_path):
    refused = inside(capsys, "run", PROMPT, "--audit-option", "folder=x", "--out", tmp_path / "run")
    assert "got --audit-option without --audit" in refused.error
