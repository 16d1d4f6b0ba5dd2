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


def test_an_ensemble_is_taken_up_again_where_one_member_has_moved(tmp_path):
    """The second of two servers goes away; the first is asked on where it was, the checks of neither are made anew."""
    folder, told = tmp_path / "run", {"threshold": 1, "attempts": 1}
    with FakeServer().running() as stays:
        with FakeServer(fault=lambda number: "500" if number > 8 else None).running() as goes:
            members = json.dumps([{"judge": one.url, "options": told, "weight": weight}
                                  for one, weight in ((stays, 1), (goes, 3))])
            ran = reflect("run", PROMPT, "--judge", "ensemble", "--judge-option", f"members={members}", "--policy",
                          "best_of_n", "--pictures", "16", "--set", "early_stop=false", "--out", folder)
            assert ran.code == 2 and "does not answer" in ran.err
        ran = reflect("resume", folder, "--judge-option", "url=http://127.0.0.1:9/v1")
        assert ran.code == 2 and "one of a member: server.url, server-2.url" in ran.err
        with FakeServer().running() as there:
            ran = reflect("resume", folder, "--judge-option", f"server-2.url={there.url}")
            assert ran.code in (0, 3), ran.err
            assert there.number and not any("questions that somebody" in str(d) for d in there.documents)
    header, run = load(folder)
    assert len(run.candidates) == 16 and any(c.judged for c in run.candidates[8:])
    before, after = (one["judge"]["options"] for one in (header.settings, run.resumed[0][1].settings))
    assert set(after) == {"members"}
    assert [m["judge"]["options"]["url"] for m in after["members"]] == [stays.url, there.url]
    assert [m["judge"]["options"]["url"] for m in before["members"]] == [stays.url, goes.url]
    assert [m["weight"] for m in after["members"]] == [1, 3]


def test_both_of_an_audit_and_members_of_its_ensemble_can_be_elsewhere(clip):
    here, there = "http://127.0.0.1:1/v1", "http://127.0.0.1:2/v1"
    ensemble = find_judge("ensemble", {"members": [{"judge": here}, {"judge": "shapes"}], "mode": "rank"})
    recorded = json.loads(json.dumps(find_judge("audited", {"judge": ensemble, "audit": find_judge(here)}).settings()))
    same = find_judge(recorded)
    moved = find_judge(recorded, {"judge.server.url": there, "judge.mode": "mean", "audit.url": there})
    assert same.settings() == recorded
    said = moved.settings()["options"]
    assert said["judge"]["options"]["members"][0]["judge"]["options"]["url"] == there == said["audit"]["options"]["url"]
    assert said["judge"]["options"]["mode"] == "mean" and set(said) == {"judge", "audit"}


@pytest.mark.parametrize("name, options, said", [
    ("clip-score", {}, "lacks the option folder"),
    ("clip-score", {"folder": "/nowhere"}, "config.json: no such file"),
    ("clip-score", {"folder": "CLIP", "shine": 1}, "no option 'shine'"),
    ("clip-score", {"folder": "CLIP", "dtype": "int3"}, "option dtype is 'int3'"),
    ("aesthetic", {"folder": "CLIP"}, "needs the option 'head'"),
    ("ensemble", {}, "expected a list of two or more"),
    ("ensemble", {"members": [{"judge": "shapes"}]}, "expected a list of two or more"),
    ("ensemble", {"members": [{"judge": "shapes"}, {"judge": "shapes"}], "url": "x"}, "no option 'url'.*shapes-2.url"),
    ("ensemble", {"members": [{"judge": "shapes"}, {"judge": "none"}], "server.url": "x"},
     "no member 'server' to have the option 'url'; expected one of shapes, none"),
    ("ensemble", {"members": [{"judge": "shapes"}, {"judge": "none"}], "none.url": "x"}, "'none' has no option 'url'"),
    ("audited", {"judge": "shapes", "audit": "none", "url": "x"}, "no option 'url'.*judge.url, audit.url"),
    ("audited", {"judge": "shapes"}, "lacks the option 'audit'"),
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
