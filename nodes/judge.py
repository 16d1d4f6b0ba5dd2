"""The four nodes of a judge: load it, verify, reflect, refine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import comfy.model_management as manager
from comfy_api.latest import io

from ..reflect_core.judges import Judge as LibraryJudge
from ..reflect_core.judges import find_judge
from ..reflect_core.reflectors.spoken import SAY, SpokenReflector
from ..reflect_core.report.words import verdict_lines
from ..reflect_core.search import relay
from ..reflect_core.types import UserError, Verdict
from .images import from_image
from .progress import NodeProgress, speaking_as
from .schema import ITSELF, Judge, Run, schema, text
from .schema import Verdict as VerdictSocket

KINDS = ("shapes", "none")


class ReflectJudge:
    """What goes over the wire: a judge of the library, and its three actors."""

    def __init__(self, judge: LibraryJudge) -> None:
        self.judge, self.actors = judge, judge.actors()

    def prepare(self, prompt: str) -> None:
        """Before it is asked of a prompt. UserError if it cannot be; ComfyUI's own exception on Cancel."""
        self.judge.check_prompt(prompt)
        self.judge.prepare(prompt)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Cancel ends what is waited for; what was asked for a run that failed goes on no other one's record."""
        self.wait()
        try:
            yield
        except BaseException:
            for actor in _with_members(self.actors.verifier, self.actors.reflector, self.actors.refiner):
                if hasattr(actor, "asked"):
                    actor.asked.clear()
            raise

    def wait(self) -> None:
        """Let Cancel end what is waited for."""
        self.judge.wait_with(manager.throw_exception_if_processing_interrupted)

    def __repr__(self) -> str:
        return f"<judge {self.judge.name}>"


def _with_members(*actors: Any) -> Iterator[Any]:
    """Actors, and whom an ensemble or an audit asks: what these were asked ahead is with them until they judge."""
    for actor in actors:
        yield actor
        yield from _with_members(*getattr(actor, "members", {}).values())


class ReflectLoadJudge(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema("ReflectLoadJudge", "models", [io.Combo.Input("kind", options=list(KINDS), default=KINDS[0])],
                      [Judge.Output("judge")], search_aliases=["verifier", "vlm judge"])

    @classmethod
    def execute(cls, kind: str) -> io.NodeOutput:
        with speaking_as("Load Judge"):
            if kind not in KINDS:
                raise UserError(f"there is no judge {kind!r}; expected one of {', '.join(KINDS)}")
            return io.NodeOutput(ReflectJudge(find_judge(kind)))


class ReflectVerifier(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "ReflectVerifier", "loop",
            [Judge.Input("judge"), text("prompt"), Run.Input("run_in", optional=True),
             io.Image.Input("image", optional=True)],
            [Run.Output("run"), io.Float.Output("score"), io.Boolean.Output("accepted"), io.String.Output("report"),
             VerdictSocket.Output("verdict")],
            hidden=ITSELF, search_aliases=["judge", "score image"])

    @classmethod
    def execute(cls, judge: ReflectJudge, prompt: str, run_in: relay.RunSoFar | None = None,
                image=None) -> io.NodeOutput:
        with speaking_as("Verifier", _round(run_in)), judge.at_work():
            if run_in is None and image is None:
                raise UserError("got neither a run nor an image; expected one of the two, or both")
            judge.prepare(prompt)
            if run_in is None:
                run_in = relay.from_pictures(prompt, from_image(image))
            elif image is not None:
                run_in = relay.with_pictures(run_in, from_image(image))
            _expect_prompt(run_in, prompt)
            after = relay.judge(run_in, judge.actors.verifier, _progress(cls))
            after = replace(after, settings={**after.settings, "judge": judge.judge.settings(prompt)})
            best = after.run.best()
            return io.NodeOutput(after, best.score, after.run.accepted is not None, verdict_lines(best.verdict),
                                 best.verdict)


class ReflectReflector(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "ReflectReflector", "loop",
            [Judge.Input("judge"), text("prompt"), Run.Input("run_in", optional=True),
             io.Image.Input("image", optional=True), VerdictSocket.Input("verdict", optional=True),
             text("words", default="", optional=True),
             io.Combo.Input("say", options=list(SAY), default=SAY[0], optional=True)],
            [Run.Output("run"), io.String.Output("reflection")],
            hidden=ITSELF, search_aliases=["feedback", "critique"])

    @classmethod
    def execute(cls, judge: ReflectJudge, prompt: str, run_in: relay.RunSoFar | None = None, image=None,
                verdict: Verdict | None = None, words: str = "", say: str = "replace") -> io.NodeOutput:
        with speaking_as("Reflector", _round(run_in)), judge.at_work():
            reflector = SpokenReflector(judge.actors.reflector, words or "", say, run_in.run.rounds if run_in else 1)
            if run_in is not None:
                if image is not None or verdict is not None:
                    raise UserError("got a run and an image or verdict too; expected either the run or those two")
                _expect_prompt(run_in, prompt)
                after = _known(relay.reflect(run_in, reflector, _progress(cls)), "reflector", judge, prompt)
                run = after.run
                said = [run.reflection(c.id, run.rounds) for c in run.candidates]
                return io.NodeOutput(after, "\n".join(text for text in said if text))
            if image is None or verdict is None:
                raise UserError("got no run and not both an image and its verdict; expected a run, or those two")
            pictures = from_image(image)
            if len(pictures) != 1:
                raise UserError(f"got {len(pictures)} pictures for one verdict; expected one; try to wire a run")
            texts = reflector.reflect(prompt, pictures, [verdict])
            getattr(judge.actors.reflector, "asked", []).clear()  # there is no record for it
            return io.NodeOutput(None, texts[0])


class ReflectRefiner(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "ReflectRefiner", "loop", [Judge.Input("judge"), text("prompt"), Run.Input("run_in")],
            [Run.Output("run"), io.String.Output("next_prompt")],
            hidden=ITSELF, search_aliases=["prompt editor", "rewrite prompt"])

    @classmethod
    def execute(cls, judge: ReflectJudge, prompt: str, run_in: relay.RunSoFar) -> io.NodeOutput:
        with speaking_as("Prompt Refiner", _round(run_in)), judge.at_work():
            if judge.actors.refiner is None:
                raise UserError(f"the judge {judge.judge.name!r} rewrites no prompts; try to leave the Prompt Refiner "
                                "out")
            relay.expect_run(run_in)
            _expect_prompt(run_in, prompt)
            after = _known(relay.refine(run_in, judge.actors.refiner, _progress(cls)), "refiner", judge, prompt)
            run = after.run
            said = [run.refinement(c.id, run.rounds) for c in run.candidates]
            return io.NodeOutput(after, "\n".join(text for text in said if text) or prompt)


def _known(so_far: relay.RunSoFar, role: str, judge: ReflectJudge, prompt: str) -> relay.RunSoFar:
    """The run with who reflects or rewrites on its record, where that is another one than who judges."""
    others = {name: value for name, value in so_far.settings.items() if name != role}
    said = judge.judge.settings(prompt)
    return replace(so_far, settings=others if said == others.get("judge") else {**others, role: said})


def _round(so_far: relay.RunSoFar | None) -> int | None:
    return so_far.run.rounds - 1 if so_far is not None and so_far.run.rounds else None


def _expect_prompt(so_far: relay.RunSoFar, prompt: str) -> None:
    if so_far.run.prompt != prompt:
        raise UserError(f"the run is of the prompt {so_far.run.prompt!r}; got {prompt!r}; expected the same for all "
                        "nodes; try one text node for all of them")


def _progress(cls: type[io.ComfyNode]) -> NodeProgress:
    node, prompts = cls.hidden.unique_id, cls.hidden.dynprompt
    return NodeProgress(node, prompts.get_display_node_id(node) if prompts else None)
