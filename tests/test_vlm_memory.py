"""A judge in this process on a small GPU: in fewer bits, and there only while it answers."""

import json

import pytest
import torch
from aligned import aligned
from command import reflect
from test_quantise import needs  # noqa: F401
from test_vlm_local import KINDS, pictures, questions
from tiny_rewards import write_tiny_clip
from tiny_vlm import write_tiny_qwen

from reflect_core.generators.offload import Offload
from reflect_core.judges import find_judge
from reflect_core.types import UserError
from reflect_core.vlm.local import Local, LocalOptions


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    return KINDS[request.param](tmp_path_factory.mktemp(request.param))


def judge(folder, **options):
    return Local.from_folder(LocalOptions(str(folder), **{"device": "cpu", "dtype": "float32", **options}))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantise", ["fp8", "torchao-int8"])
def test_in_fewer_bits_it_answers_nearly_the_same(folder, quantise, dtype, needs):  # noqa: F811
    needs(quantise)
    asked = questions(pictures(2))
    packed, whole = judge(folder, quantise=quantise, dtype=dtype), judge(folder, dtype=dtype)
    assert packed.model.get_output_embeddings().weight.dtype == getattr(torch, dtype)
    assert packed.reader.dtype == getattr(torch, dtype)
    if quantise == "fp8":
        kinds = {p.dtype for p in packed.model.parameters()}
        assert kinds == {torch.float8_e4m3fn, getattr(torch, dtype)}
    odds = [torch.tensor([answer.yes for answer in one.ask(asked) if answer.yes is not None])
            for one in (packed, whole)]
    assert not torch.equal(*odds), "the weights were rounded"
    assert (odds[0] - odds[1]).abs().max() < 0.1
    # Read in parts or whole, as without.
    assert packed.reader.shares == whole.reader.shares


def test_bitsandbytes_packs_it(tmp_path, needs):  # noqa: F811
    needs("nf4")
    folder = write_tiny_qwen(tmp_path, wide=True)
    asked = questions(pictures(2))
    packed, whole = judge(folder, quantise="nf4"), judge(folder)
    layer = packed.model.get_decoder().layers[0].mlp.up_proj
    assert layer.weight.dtype == torch.uint8 and layer.training is False
    odds = [torch.tensor([answer.yes for answer in one.ask(asked) if answer.yes is not None])
            for one in (packed, whole)]
    assert 0 < (odds[0] - odds[1]).abs().max() < 0.2


@pytest.mark.parametrize("quantise", ["none", "fp8"])
@pytest.mark.parametrize("offload", ["component", "layers"])
def test_it_is_there_only_while_it_answers(folder, offload, quantise, monkeypatch):
    """`cpu:0` is another name than the CPU's, so that what comes and goes is told."""
    asked = questions(pictures(2))
    stays = aligned(judge(folder, quantise=quantise))
    comes = judge(folder, quantise=quantise, device="cpu:0", offload=offload)
    said = []
    bring = Offload.__call__
    monkeypatch.setattr(Offload, "__call__", lambda self, *a: said.append(self.here) or bring(self, *a))
    assert [(a.text, a.yes, a.no) for a in comes.ask(asked)] == [(a.text, a.yes, a.no) for a in stays.ask(asked)]
    manager = comes.places.manager
    assert manager.here is None and not any(group.there for group in manager.parts["judge"].stream.blocks)
    assert said == [None, None, "judge"], "to be checked, and for the two pictures of one turn"


def test_it_goes_when_somebody_stops_it(tmp_path):
    comes = judge(write_tiny_qwen(tmp_path), device="cpu:0", offload="component")
    comes.check()

    def stop():
        raise KeyboardInterrupt

    comes.on_wait = stop
    with pytest.raises(KeyboardInterrupt):
        comes.ask(questions(pictures(1)))
    assert comes.places.manager.here is None


def test_what_cannot_go_together(tmp_path, monkeypatch):
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("accelerate")
    folder = str(write_tiny_qwen(tmp_path))
    with pytest.raises(UserError, match="which diffusers offers on a GPU only|on a GPU only"):
        judge(folder, quantise="nf4")
    monkeypatch.setattr("reflect_core.generators.quantise.NEED_GPU", ())
    with pytest.raises(UserError, match="stay where they were packed, and option offload is 'layers'"):
        judge(folder, quantise="int8", offload="layers")
    for name, value in (("quantise", "fp4"), ("offload", "disk")):
        with pytest.raises(UserError, match=f"option {name} is '{value}'; expected 'none' or"):
            find_judge(folder, {name: value})


def test_a_reward_goes_home_too(tmp_path):
    folder = str(write_tiny_clip(tmp_path / "clip"))
    looked = pictures(3)
    stays = find_judge("clip-score", {"folder": folder, "device": "cpu"}).actors().verifier
    comes = find_judge("clip-score", {"folder": folder, "device": "cpu:0", "offload": "component"}).actors().verifier
    aligned(stays)
    assert [v.score for v in comes.judge("a star", looked)] == [v.score for v in stays.judge("a star", looked)]
    assert comes.places.manager.here is None


def test_two_rewards_that_share_an_encoder_share_its_manager(tmp_path):
    folder = str(write_tiny_clip(tmp_path / "clip"))
    member = {"judge": "clip-score", "options": {"folder": folder, "device": "cpu", "offload": "component"}}
    both = find_judge("ensemble", {"members": [member, member]}).actors().verifier
    one, other = both.members.values()
    assert one.places.manager is other.places.manager is not None
    assert both.judge("a star", pictures(2))[0].judged


def test_by_the_command_line(tmp_path):
    folder = write_tiny_qwen(tmp_path / "qwen", answers=True)
    ran = reflect("run", "a red circle", "--policy", "best_of_n", "--pictures", "2", "--steps", "1", "--judge", folder,
                  "--judge-option", "offload=component", "--judge-option", "quantise=fp8", "--judge-option",
                  'checks=["Is it red?"]', "--out", tmp_path / "run", "--json")
    assert ran.code in (0, 3), ran.err
    options = json.loads((tmp_path / "run" / "run.jsonl").read_text().splitlines()[0])["settings"]["judge"]["options"]
    assert (options["offload"], options["quantise"]) == ("component", "fp8")
