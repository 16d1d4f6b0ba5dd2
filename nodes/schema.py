"""Schemas and sockets that every core since 0.3.64 takes: newer keywords are left out where unknown.

A keyword that a core does not know makes the whole pack vanish there, so nothing is passed by hand.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from comfy_api.latest import io

Model = io.Custom("REFLECT_MODEL")
Judge = io.Custom("REFLECT_JUDGE")
Run = io.Custom("REFLECT_RUN")
Verdict = io.Custom("REFLECT_VERDICT")
Flow = io.Custom("REFLECT_FLOW")

ROOT = "reflect"


@lru_cache(maxsize=1)
def texts() -> dict[str, Any]:
    """Names and tooltips, by node: the English locale is where they are written."""
    return json.loads((Path(__file__).parents[1] / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))


def schema(node_id: str, category: str, inputs: list, outputs: list, **rest: Any) -> io.Schema:
    """A schema below our root category, with its texts, and with what this core knows of `rest`."""
    said = texts()[node_id]
    for at, sockets in (("inputs", {i.id: i for i in inputs}), ("outputs", {str(k): o for k, o in enumerate(outputs)})):
        for key, socket in sockets.items():
            socket.display_name, socket.tooltip = said[at][key]["name"], said[at][key]["tooltip"]
    known = {field.name for field in dataclasses.fields(io.Schema)}
    return io.Schema(node_id=node_id, display_name=said["display_name"], description=said["description"],
                     category=f"{ROOT}/{category}".rstrip("/"), inputs=inputs, outputs=outputs,
                     **{name: value for name, value in rest.items() if name in known})


def raw(socket: Any, name: str, **rest: Any) -> io.Input:
    """An input that gets the link itself instead of the value behind it."""
    return socket.Input(name, extra_dict={"rawLink": True}, **rest)


def rare(widget: Any, name: str, **rest: Any) -> io.Input:
    """A widget that newer cores show below 'advanced'."""
    if "advanced" in inspect.signature(widget.Input.__init__).parameters:
        rest["advanced"] = True
    return widget.Input(name, **rest)


ITSELF = [io.Hidden.unique_id, io.Hidden.dynprompt]
"""What a node must know to show its progress."""
MOST_SEED = 2**32 - 1


def text(name: str, **rest: Any) -> io.Input:
    """A field for several lines, without ComfyUI's own {a|b} syntax."""
    return io.String.Input(name, multiline=True, dynamic_prompts=False, **rest)


def seed() -> io.Input:
    return io.Int.Input("seed", default=0, min=0, max=MOST_SEED, control_after_generate=True)


def drawing() -> list[io.Input]:
    """Steps, guidance and size; the least value of each stands for the model's own."""
    return [io.Int.Input("steps", default=0, min=0, max=1000),
            io.Float.Input("guidance", default=-1.0, min=-1.0, max=100.0, step=0.1, round=0.01),
            io.Int.Input("width", default=0, min=0, max=16384, step=16),
            io.Int.Input("height", default=0, min=0, max=16384, step=16)]
