"""A loop as copies of its body: which nodes are in it, and the graph of the next round.

Plain dictionaries in and out, as ComfyUI has its prompts: `{id: {"class_type": ..., "inputs": {...}}}`,
where a link is `[id, socket]`. Nothing here asks what the nodes do.

    down    what can be reached from Loop Start without passing the controller
    leaves  the output nodes among them, so that a preview in the body shows every round
    body    down, of which the controller or a leaf needs something
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Graph = Mapping[str, Mapping[str, Any]]


def is_link(value: Any) -> bool:
    return (isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)
            and isinstance(value[1], int) and not isinstance(value[1], bool))


def sources(node: Mapping[str, Any]) -> list[str]:
    """Ids of the nodes that a node has links from."""
    return [value[0] for value in node["inputs"].values() if is_link(value)]


def above_of(graph: Graph, id: str) -> set[str]:
    """A node and all that it needs, as far as `graph` goes."""
    return _reach(id, lambda id: [s for s in sources(graph[id]) if s in graph])


def find_body(graph: Graph, start: str, end: str, is_leaf: Callable[[str], bool]) -> set[str]:
    """Ids of a loop's nodes, `start` and `end` with them. `graph` holds the nodes of the loop's own level."""
    users: dict[str, list[str]] = {}
    for id, node in graph.items():
        for source in sources(node):
            users.setdefault(source, []).append(id)
    down = _reach(start, lambda id: [] if id == end else users.get(id, []))
    leaves = [id for id in down if id not in (start, end) and is_leaf(id)]
    up = set().union(*(above_of(graph, id) for id in (end, *leaves)))
    return (down & up) | {start, end}


def _reach(first: str, step: Callable[[str], Iterable[str]]) -> set[str]:
    seen, waiting = {first}, [first]
    while waiting:
        new = [id for id in step(waiting.pop()) if id not in seen]
        seen.update(new)
        waiting += new
    return seen


def own_part(id: str) -> str:
    """The last part of an id, which a node keeps through all copies."""
    return id.rsplit(".", 1)[-1]


def root_and_round(id: str, parent: str | None) -> tuple[str, int]:
    """The id of the first controller of a loop, and how many rounds were copied before the one with this id.

    `parent` is the node that made this one, None for one of the user's own graph. A controller that was
    copied by itself is a later round; one that an outer loop copied begins anew.
    """
    match = re.fullmatch(r"(.+)~(\d+)\.([^.]+)", id)
    if parent is None or match is None or own_part(parent) != own_part(id):
        return id, 0
    return match[1], int(match[2])


def next_round(graph: Graph, body: set[str], start: str, end: str, prefix: str, outputs: Mapping[int, Any]
               ) -> tuple[dict[str, dict[str, Any]], str]:
    """Copies of the body as the next round, and the id of the controller's copy.

    `prefix` goes before each copy's own part. The start is not copied: `outputs` are links or values that take the
    place of what comes from its sockets; a socket that is not among them stays a link to the start itself.
    """
    names = {id: prefix + own_part(id) for id in body - {start}}

    def moved(value: Any) -> Any:
        if not is_link(value):
            return value
        if value[0] == start:
            return outputs.get(value[1], value)
        return [names[value[0]], value[1]] if value[0] in names else value

    copies = {names[id]: {"class_type": graph[id]["class_type"],
                          "inputs": {name: moved(value) for name, value in graph[id]["inputs"].items()}}
              for id in sorted(names)}
    return copies, names[end]
