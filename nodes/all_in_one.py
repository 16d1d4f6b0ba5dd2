"""The whole search in one node: the same stepper, without per-round nodes."""

from __future__ import annotations

from comfy_api.latest import io

from ..reflect_core import search
from ..reflect_core.search import POLICIES, relay
from ..reflect_core.search.registry import OFFICIAL, official_options, policy_for
from ..reflect_core.types import UserError
from .expansion import own_part
from .loop import result_outputs, results
from .progress import NodeProgress, speaking_as
from .schema import ITSELF, Judge, Model, drawing, schema, seed, text

NAME = "Reflection Loop (all in one)"


class ReflectLoop(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "ReflectLoop", "",
            [Model.Input("reflect_model"), Judge.Input("judge"), text("prompt"), seed(),
             io.Combo.Input("policy", options=[*POLICIES, OFFICIAL], default="reflection_flow"),
             io.Int.Input("budget", default=20, min=1, max=4096), *drawing()],
            result_outputs(), hidden=[*ITSELF, io.Hidden.extra_pnginfo],
            search_aliases=["reflection flow", "best of n", "search"])

    @classmethod
    def execute(cls, reflect_model, judge, prompt: str, seed: int, policy: str, budget: int, steps: int,
                guidance: float, width: int, height: int) -> io.NodeOutput:
        node, prompts = cls.hidden.unique_id, cls.hidden.dynprompt
        with speaking_as(NAME), judge.at_work():
            request = reflect_model.request(prompt, seed, steps, guidance, width, height)
            judge.judge.check(request)
            judge.prepare(prompt)
            progress = NodeProgress(node, prompts.get_display_node_id(node) if prompts else None, on_picture=True)
            own, edits = reflect_model.choice.policy, reflect_model.choice.edits
            if policy == OFFICIAL and (options := official_options(own, edits)):
                reflect_model = reflect_model.with_options(**options)
            stepper = search.start(request, policy_for(policy, budget, own, edits), reflect_model.generator,
                                   judge.actors.verifier, judge.actors.reflector, judge.actors.refiner,
                                   on_event=progress, budget=None if policy == OFFICIAL else search.Budget(budget))
            run, chosen = stepper.run(), stepper.best
            if chosen is None:
                raise UserError("the budget was spent before a picture was judged; try a larger one")
            branches = getattr(stepper.policy, "branches", 1)
            so_far = relay.RunSoFar(run, branches, reflect_model.name, reflect_model.fingerprint,
                                    {**reflect_model.settings, "judge": judge.judge.settings(prompt)}, stepper.policy,
                                    chosen.id, max(reflect_model.generator.max_context, 1), edits)
            return results(so_far, chosen.accepted, own_part(node), cls.hidden.extra_pnginfo)

