"""The loop's algorithm on plain graphs: what the body is, how it is copied, and what copies are called."""

import copy
import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[1] / "nodes" / "expansion.py"
spec = importlib.util.spec_from_file_location("expansion_of_reflect", PATH)
expansion = importlib.util.module_from_spec(spec)
spec.loader.exec_module(expansion)

LEAVES = {"Preview", "Save"}


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def loop():
    """prompt, start 1, sample 2, verifier 3, reflector 4, controller 5, a preview in the body, a save after it."""
    return {
        "0": node("Text", value="x"),
        "1": node("Start"),
        "2": node("Sample", run=["1", 1], prompt=["0", 0], seed=7),
        "3": node("Verifier", run=["2", 1], prompt=["0", 0]),
        "4": node("Reflector", run=["3", 0]),
        "5": node("Controller", flow=["1", 0], run_in=["3", 0], next_run=["4", 0], rounds=4),
        "6": node("Preview", images=["2", 0]),
        "7": node("Save", images=["5", 0]),
        "8": node("Unused", run=["2", 1]),
    }


def body_of(graph, start="1", end="5"):
    return expansion.find_body(graph, start, end, lambda id: graph[id]["class_type"] in LEAVES)


def test_the_body_is_what_the_controller_or_a_preview_needs_of_what_the_start_feeds():
    assert body_of(loop()) == {"1", "2", "3", "4", "5", "6"}


def test_what_lies_after_the_controller_or_before_the_start_is_no_body():
    graph = loop() | {"9": node("Loader"), "10": node("Preview", images=["7", 0])}
    graph["2"]["inputs"]["model"] = ["9", 0]
    assert not body_of(graph) & {"0", "7", "9", "10"}


def test_a_users_own_node_between_and_beside():
    graph = loop() | {"20": node("Upscale", image=["2", 0]), "21": node("Caption", image=["20", 0]),
                      "22": node("Preview", text=["21", 0]), "23": node("Dead end", image=["20", 0])}
    assert body_of(graph) >= {"20", "21", "22"} and "23" not in body_of(graph)


def test_copies_have_links_among_themselves_and_to_what_stays_outside():
    graph = loop()
    graph["3"]["inputs"]["round"] = ["1", 2]
    before = copy.deepcopy(graph)
    copies, end = expansion.next_round(graph, body_of(graph), "1", "5", "5~1.", {1: ["4", 0], 2: 2})
    assert end == "5~1.5" and set(copies) == {f"5~1.{k}" for k in (2, 3, 4, 5, 6)}, "the start is not copied"
    assert copies["5~1.2"]["inputs"] == {"run": ["4", 0], "prompt": ["0", 0], "seed": 7}
    assert copies["5~1.3"]["inputs"] == {"run": ["5~1.2", 1], "prompt": ["0", 0], "round": 2}
    assert copies["5~1.5"]["inputs"]["flow"] == ["1", 0] and copies["5~1.5"]["inputs"]["rounds"] == 4
    assert graph == before


def test_rounds_can_be_copied_on_and_on_and_ids_stay_short():
    graph, end, parent, onward = loop(), "5", None, ["4", 0]
    for number in range(1, 33):
        root, copied = expansion.root_and_round(end, parent)
        assert (root, copied) == ("5", number - 1)
        copies, after = expansion.next_round(graph, body_of(graph), "1", root, f"{root}~{copied + 1}.",
                                             {1: onward, 2: number + 1})
        assert copies[f"5~{number}.2"]["inputs"]["run"] == onward
        onward = copies[after]["inputs"]["next_run"]
        parent, end = end, after
        assert len(copies) == 5 and max(map(len, copies)) <= len("5~32.5")


@pytest.mark.parametrize("id, parent, expected", [
    ("5", None, ("5", 0)),
    ("5~1.5", "5", ("5", 1)),
    ("5~12.5", "5~11.5", ("5", 12)),
    ("10:5", None, ("10:5", 0)),
    ("10:5~2.10:5", "10:5~1.10:5", ("10:5", 2)),
    ("9~2.5", "9~1.9", ("9~2.5", 0)),
    ("9~2.5~3.5", "9~2.5~2.5", ("9~2.5", 3)),
    ("4.0.0.2", "4", ("4.0.0.2", 0)),
])
def test_a_controller_knows_its_round_and_begins_anew_in_each_round_of_an_outer_loop(id, parent, expected):
    assert expansion.root_and_round(id, parent) == expected


@pytest.mark.parametrize("value, link", [(["5", 0], True), (["5", True], False), (["5", "0"], False), ([5, 0], False),
                                         ("5", False), (["5", 0, 1], False), (("5", 0), False)])
def test_what_a_link_is(value, link):
    assert expansion.is_link(value) is link
