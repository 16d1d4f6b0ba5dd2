"""Loop Start and Loop Controller: rounds by node expansion, ended as soon as the judge accepts.

The controller decides about the round that was just judged. If another one is to be drawn it returns
copies of the body, and of itself, instead of values. The link to `next run` is forwarded without being
followed (lazy and raw), so that nothing is reflected on after an accepted or last round. Threshold,
rounds and budget lie on the controller only: changing them leaves the rounds before in the cache.
"""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..reflect_core.report.words import verdict_lines
from ..reflect_core.search import keep as records
from ..reflect_core.search import relay
from ..reflect_core.search.decision import KEEP, decide, finish
from ..reflect_core.types import UserError
from .expansion import above_of, find_body, is_link, next_round, own_part, root_and_round
from .images import to_image
from .progress import NodeProgress, speaking_as
from .schema import ITSELF, Flow, Run, raw, schema

START, NAME = "Loop Start", "Loop Controller"
MOST_ROUNDS = 32
"""Each round nests one level deeper in the executor."""


class ReflectLoopStart(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "ReflectLoopStart", "loop", [Run.Input("run_in", optional=True)],
            [Flow.Output("flow"), Run.Output("run"), io.Int.Output("round")],
            search_aliases=["loop open", "for loop", "while loop"])

    @classmethod
    def execute(cls, run_in: relay.RunSoFar | None = None) -> io.NodeOutput:
        return io.NodeOutput("flow", run_in, 1 if run_in is None else run_in.run.rounds + 1)


class ReflectLoopController(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "ReflectLoopController", "loop",
            [raw(Flow, "flow"), Run.Input("run_in"), raw(Run, "next_run", optional=True, lazy=True),
             io.Float.Input("threshold", default=1.0, min=0.0, max=1.0, step=0.01, round=0.001),
             io.Int.Input("rounds", default=6, min=1, max=MOST_ROUNDS),
             io.Int.Input("budget", default=64, min=1, max=4096),
             io.Combo.Input("keep", options=list(KEEP), default=KEEP[0])],
            result_outputs(), is_input_list=True, enable_expand=True, hidden=[*ITSELF, io.Hidden.extra_pnginfo],
            search_aliases=["loop close", "loop end", "while loop"])

    @classmethod
    def execute(cls, flow: list, run_in: list, threshold: list, rounds: list, budget: list, keep: list,
                next_run: list | None = None) -> io.NodeOutput:
        node, prompts = cls.hidden.unique_id, cls.hidden.dynprompt
        for name, values in (("run", run_in), ("threshold", threshold), ("rounds", rounds), ("budget", budget),
                             ("keep", keep)):
            if len(values) != 1:
                raise UserError(f"{NAME}: the loop carries one {name}; got a list of {len(values)}; try to queue each "
                                "by itself, or several candidates a round")
        if not 1 <= rounds[0] <= MOST_ROUNDS:
            raise UserError(f"{NAME}: got {rounds[0]} rounds; expected 1 to {MOST_ROUNDS}; try several candidates a "
                            "round")
        so_far: relay.RunSoFar = run_in[0]
        with speaking_as(NAME, so_far.run.rounds - 1 if so_far else None):
            relay.expect_run(so_far)
            root, copied = root_and_round(node, prompts.get_parent_node_id(node))
            graph, start = _level(prompts, root), _start_of(prompts, flow[0])
            body = find_body(graph, start, root, lambda id: _is_leaf(graph, id))
            before = so_far.run.rounds - copied - 1
            source = graph[root]["inputs"]["run_in"]
            if before < 0 or not (is_link(source) and source[0] in body - {root}):
                raise UserError(f"the run does not come from {START}, so that every round would be the same; expected "
                                "its 'run' to go to 'run so far' of Reflect-Sample, and from there to here")
            onward = graph[root]["inputs"].get("next_run", source)
            if not (is_link(onward) and onward[0] in body - {start, root}):
                raise UserError("'next run' does not come from this round, so that every round would be the same; "
                                "expected the run of a Reflector or Prompt Refiner behind the Verifier, or nothing")
            decision = decide(so_far, threshold[0], before + rounds[0], budget[0], keep[0])
            progress = NodeProgress(node, prompts.get_display_node_id(node), before + rounds[0])
            progress.say(f"round {copied + 1}/{rounds[0]}, score {so_far.run.best().score:.2f}")
            if decision.stop:
                return results(finish(so_far, decision), decision.kind == "accepted", own_part(root),
                               cls.hidden.extra_pnginfo)
            _expect_cache()
            return _expand(prompts, graph, body, start, root, node, copied + 1, so_far.run.rounds)


def _expect_cache() -> None:
    """UserError where a core forgets the nodes of a round as soon as they are made (its issue 10329)."""
    from comfy.cli_args import args
    from comfy_execution import caching

    if getattr(args, "cache_none", False) and hasattr(caching, "DependencyAwareCache"):
        raise UserError("this version of ComfyUI cannot run loops with --cache-none; expected another cache or a newer "
                        "version; try Reflection Loop (all in one), or start ComfyUI without that option")


def result_outputs() -> list:
    """What a loop hands on, the wired one and the one in a single node alike."""
    return [io.Image.Output("image"), io.Image.Output("images"), Run.Output("run"), io.Boolean.Output("accepted"),
            io.Int.Output("rounds_used"), io.String.Output("report")]


def results(so_far: relay.RunSoFar, accepted: bool, node: str, pnginfo: Any = None) -> io.NodeOutput:
    """The values of `result_outputs`, of a run that has ended. `pnginfo`: what is saved with pictures; the run in
    short goes in there, under the id of the user's `node`."""
    run, chosen = so_far.run, so_far.run.candidate(so_far.chosen)
    if isinstance(pnginfo, dict):
        pnginfo.setdefault("reflect_run", {})[node] = records.compact(so_far)
    pictures = [run.picture(c.id) for c in run.candidates]
    size = pictures[chosen.id].size
    told = f"{run.stopped.reason}\n{verdict_lines(chosen.verdict)}"
    return io.NodeOutput(to_image([pictures[chosen.id]]), to_image([p for p in pictures if p.size == size]), so_far,
                         accepted, run.rounds, told)


def _level(prompts: Any, node: str) -> dict[str, Any]:
    """The nodes that lie where the controller lies: of the user's graph, or of one round of an outer loop."""
    parent = prompts.get_parent_node_id(node)
    return {id: prompts.get_node(id) for id in prompts.all_node_ids() if prompts.get_parent_node_id(id) == parent}


def _start_of(prompts: Any, flow: Any) -> str:
    kind = prompts.get_node(flow[0])["class_type"] if is_link(flow) and prompts.has_node(flow[0]) else None
    if kind != "ReflectLoopStart":
        raise UserError(f"'flow' comes from {kind or 'nowhere'}; expected a {START}, wired without anything in between")
    return flow[0]


def _is_leaf(graph: dict[str, Any], id: str) -> bool:
    """Whether a node is an output node that ComfyUI runs: it leaves out one that lacks an input, or stands on such a
    one."""
    return (getattr(_class(graph[id]), "OUTPUT_NODE", False)
            and all(_is_complete(graph[above]) for above in above_of(graph, id)))


def _is_complete(node: dict[str, Any]) -> bool:
    return set(_class(node).INPUT_TYPES().get("required", {})) <= set(node["inputs"])


def _class(node: dict[str, Any]) -> Any:
    import sys

    # ComfyUI's own module of that name, not ours.
    return sys.modules["nodes"].NODE_CLASS_MAPPINGS[node["class_type"]]


def _expand(prompts: Any, graph: dict[str, Any], body: set[str], start: str, root: str, node: str, copied: int,
            rounds: int) -> io.NodeOutput:
    """The next round in place of values: what the start would hand on there is what this round's controller has."""
    inputs, prefix = prompts.get_node(node)["inputs"], f"{root}~{copied}."
    copies, end = next_round(graph, body, start, root, prefix,
                             {1: inputs.get("next_run", inputs["run_in"]), 2: rounds + 1})
    originals = {prefix + own_part(id): id for id in body}
    for id, copy in copies.items():
        copy["override_display_id"] = prompts.get_display_node_id(originals[id])
    return io.NodeOutput(*([end, socket] for socket in range(len(result_outputs()))), expand=copies)
