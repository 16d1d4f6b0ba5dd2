"""Reflect-Sample: draw the next round of a run."""

from __future__ import annotations

from comfy_api.latest import io

from ..reflect_core.search import relay
from .images import to_image
from .progress import NodeProgress, speaking_as
from .schema import ITSELF, Model, Run, drawing, rare, schema, seed, text

NAME = "Reflect-Sample"


class ReflectSample(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "ReflectSample", "loop",
            [Model.Input("reflect_model"), text("prompt"), Run.Input("run_so_far", optional=True), seed(),
             io.Int.Input("candidates", default=1, min=1, max=64), *drawing(),
             rare(io.Int, "first_round", default=0, min=0, max=256)],
            [io.Image.Output("images"), Run.Output("run")],
            hidden=ITSELF, search_aliases=["reflection sampler", "corrector"])

    @classmethod
    def execute(cls, reflect_model, prompt: str, seed: int, candidates: int, steps: int, guidance: float, width: int,
                height: int, first_round: int = 0, run_so_far: relay.RunSoFar | None = None) -> io.NodeOutput:
        node, prompts = cls.hidden.unique_id, cls.hidden.dynprompt
        with speaking_as(NAME, run_so_far.run.rounds if run_so_far else 0):
            request = reflect_model.request(prompt, seed, steps, guidance, width, height)
            progress = NodeProgress(node, prompts.get_display_node_id(node) if prompts else None)
            after = relay.draw(run_so_far, request, candidates, reflect_model.generator, progress,
                               first_round or None, model=reflect_model.name, fingerprint=reflect_model.fingerprint,
                               settings=reflect_model.settings)
            run = after.run
            last = run.in_round(run.rounds - 1)
            return io.NodeOutput(to_image([run.picture(c.id) for c in last]), after)
