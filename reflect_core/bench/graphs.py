"""Prompts in API form for the tests on the real engine: the loop, wired from the nodes."""

from __future__ import annotations

import copy
from typing import Any

PROMPT = "two red circles left of a blue star and three yellow triangles"
SMALL = {"steps": 1, "guidance": 2.5, "width": 64, "height": 64}
"""One step: never right, whatever the model has learned, and quick."""

BUNDLED = {"ReflectLoadModel": ("model", ("shapes-flux", "shapes-sana")), "ReflectLoadJudge": ("kind", ("shapes",))}
"""What is changed in a workflow of weights that are not here, by node: its widget, and the values that come with the
pack, of which the first is put in the place of all others."""

LOOP = {
    "model": {"class_type": "ReflectLoadModel",
              "inputs": {"model": "shapes-flux", "lora": "the model's own", "dtype": "auto", "offload": "whole"}},
    "judge": {"class_type": "ReflectLoadJudge", "inputs": {"kind": "shapes"}},
    "prompt": {"class_type": "PrimitiveStringMultiline", "inputs": {"value": PROMPT}},
    "start": {"class_type": "ReflectLoopStart", "inputs": {}},
    "sample": {"class_type": "ReflectSample",
               "inputs": {"reflect_model": ["model", 0], "prompt": ["prompt", 0], "run_so_far": ["start", 1], "seed": 0,
                          "candidates": 2, **SMALL, "first_round": 0}},
    "verifier": {"class_type": "ReflectVerifier",
                 "inputs": {"judge": ["judge", 0], "prompt": ["prompt", 0], "run_in": ["sample", 1]}},
    "reflector": {"class_type": "ReflectReflector",
                  "inputs": {"judge": ["judge", 0], "prompt": ["prompt", 0], "run_in": ["verifier", 0], "words": "",
                             "say": "replace"}},
    "controller": {"class_type": "ReflectLoopController",
                   "inputs": {"flow": ["start", 0], "run_in": ["verifier", 0], "next_run": ["reflector", 0],
                              "threshold": 1.0, "rounds": 3, "budget": 64, "keep": "best"}},
    "save": {"class_type": "SaveImage", "inputs": {"images": ["controller", 0], "filename_prefix": "reflect"}},
    "all": {"class_type": "PreviewImage", "inputs": {"images": ["controller", 1]}},
    "report": {"class_type": "PreviewAny", "inputs": {"source": ["controller", 5]}},
    "tree": {"class_type": "ReflectShowRun",
             "inputs": {"run_in": ["controller", 2], "save": False, "prefix": "reflect/run"}},
}


def loop(changes: dict[str, Any] | None = None, **nodes: Any) -> dict[str, Any]:
    """The loop with inputs changed, `{"sample.seed": 3}` (None takes one away), and nodes added (None: taken away)."""
    graph = copy.deepcopy(LOOP)
    for name, node in nodes.items():
        if node is None:
            del graph[name]
        else:
            graph[name] = node
    for key, value in (changes or {}).items():
        node, name = key.split(".")
        if value is None:
            graph[node]["inputs"].pop(name, None)
        else:
            graph[node]["inputs"][name] = value
    return graph


def all_in_one(**inputs: Any) -> dict[str, Any]:
    graph = {name: copy.deepcopy(LOOP[name]) for name in ("model", "judge")}
    graph["loop"] = {"class_type": "ReflectLoop",
                     "inputs": {"reflect_model": ["model", 0], "judge": ["judge", 0], "prompt": PROMPT, "seed": 0,
                                "policy": "reflection_flow", "budget": 8, **SMALL, **inputs}}
    graph["save"] = {"class_type": "SaveImage", "inputs": {"images": ["loop", 0], "filename_prefix": "one"}}
    graph["all"] = {"class_type": "PreviewImage", "inputs": {"images": ["loop", 1]}}
    graph["report"] = {"class_type": "PreviewAny", "inputs": {"source": ["loop", 5]}}
    return graph


def numbered(graph: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """A graph with numbers for ids, as a page gives them, and the number of each name."""
    ids = {name: str(number) for number, name in enumerate(graph, start=1)}

    def renamed(value: Any) -> Any:
        return [ids[value[0]], value[1]] if isinstance(value, list) else value

    return {ids[name]: {**node, "inputs": {key: renamed(value) for key, value in node["inputs"].items()}}
            for name, node in graph.items()}, ids


def ran(executed: list[str], name: str) -> int:
    """How often a node of the loop ran, copies with it."""
    return sum(id.rsplit(".", 1)[-1] == name for id in executed)
