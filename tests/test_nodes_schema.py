"""The nodes as ComfyUI sees them, without ComfyUI: ids, texts, help pages, locales, and the shipped workflows."""

import json
from pathlib import Path

import pytest
from fake_comfy import ROOT, WIDGETS, load_pack

WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
IDS = ("ReflectLoadModel", "ReflectLoadFiles", "ReflectLoadJudge", "ReflectServerJudge", "ReflectLocalJudge",
       "ReflectRewardJudge", "ReflectEnsemble", "ReflectAudit", "ReflectSample", "ReflectVerifier",
       "ReflectReflector", "ReflectRefiner", "ReflectLoopStart", "ReflectLoopController", "ReflectLoop",
       "ReflectShowRun", "ReflectLoadRun")
NAMES = ("Load Reflective DiT", "Load FLUX Files", "Load Judge", "Load Judge (server)", "Load Judge (language model)",
         "Load Judge (reward model)", "Judge Ensemble", "Judge Audit", "Reflect-Sample", "Verifier", "Reflector",
         "Prompt Refiner", "Loop Start", "Loop Controller", "Reflection Loop (all in one)", "Show Run", "Load Run")
SECRETS = ("key", "token", "password", "secret")
SOCKETS = {"REFLECT_MODEL", "REFLECT_JUDGE", "REFLECT_RUN", "REFLECT_VERDICT", "REFLECT_FLOW", "IMAGE"}


@pytest.fixture(scope="module")
def schemas():
    return {id: node.define_schema() for id, node in load_pack().items()}


def locale(language, name="nodeDefs"):
    return json.loads((ROOT / "locales" / language / f"{name}.json").read_text(encoding="utf-8"))


def test_ids_and_names_are_what_saved_workflows_have(schemas):
    assert tuple(schemas) == IDS
    assert tuple(s.display_name for s in schemas.values()) == NAMES
    assert {s.category for s in schemas.values()} == {"reflect", "reflect/loop", "reflect/models"}


@pytest.mark.parametrize("id", IDS)
def test_everything_is_explained_and_bounded(schemas, id):
    schema = schemas[id]
    assert schema.description.endswith(".")
    names = [one.id for one in (*schema.inputs, *schema.outputs)]
    assert len(names) == len(set(names)), "an input and an output of one id make the pack vanish on 0.3.64"
    for one in (*schema.inputs, *schema.outputs):
        assert one.tooltip and one.tooltip[-1] in ".)" and one.display_name, (id, one.id)
        assert one.io_type in SOCKETS | WIDGETS
    for one in schema.inputs:
        assert not any(word in one.id for word in SECRETS)
        if one.io_type in ("INT", "FLOAT"):
            assert one.rest["min"] <= one.rest["default"] <= one.rest["max"], (id, one.id)
        if one.io_type == "FLOAT":
            assert one.rest["step"], (id, one.id)
        if one.io_type == "COMBO":
            assert one.rest["options"] and one.rest.get("default", one.rest["options"][0]) in one.rest["options"]


@pytest.mark.parametrize("id", IDS)
def test_every_node_has_a_help_page_that_names_all_that_it_has(schemas, id):
    page = (ROOT / "nodes" / "web" / "docs" / f"{id}.md").read_text(encoding="utf-8")
    schema = schemas[id]
    assert page.startswith(f"# {schema.display_name}\n")
    missing = [one.display_name for one in (*schema.inputs, *schema.outputs) if one.display_name not in page]
    assert not missing


@pytest.mark.parametrize("name", ["nodeDefs", "main"])
def test_every_language_says_the_same(name):
    def keys(data):
        return {k: keys(v) for k, v in data.items()} if isinstance(data, dict) else bool(data)

    assert keys(locale("en", name)) == keys(locale("zh", name))


def test_no_text_is_left_over_or_lacking(schemas):
    assert {id: (list(said["inputs"]), list(said["outputs"])) for id, said in locale("en").items()} == {
        id: ([i.id for i in s.inputs], [str(k) for k in range(len(s.outputs))]) for id, s in schemas.items()}


def test_there_is_a_workflow_for_each_setup():
    assert {path.stem for path in WORKFLOWS} == {
        "quickstart", "reflectionflow", "reflect_dit", "best_of_n", "noise_prompt_scaling", "all_in_one",
        "human_in_the_loop"}
    assert {p.name for p in (ROOT / "workflows" / "api").glob("*.json")} == {p.name for p in WORKFLOWS}


def widgets_of(schema):
    """Names of a node's fields as a workflow lists their values."""
    names = []
    for one in schema.inputs:
        if one.io_type in WIDGETS:
            names += [one.id, "control"] if one.id == "seed" else [one.id]
    return names


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_fits_the_nodes(schemas, path):
    workflow = json.loads(path.read_text(encoding="utf-8"))
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for node in nodes.values():
        if node["type"] not in schemas:
            assert not node["type"].startswith("Reflect"), node["type"]
            continue
        schema = schemas[node["type"]]
        fields = widgets_of(schema)
        assert len(node.get("widgets_values", [])) == len(fields), (node["type"], fields)
        for name, value in zip(fields, node.get("widgets_values", [])):
            assert name != "control" or value == "fixed"
        assert [o["type"] for o in node["outputs"]] == [o.io_type for o in schema.outputs]
        known = {one.id: one.io_type for one in schema.inputs}
        assert all(known[i["name"]] == i["type"] for i in node["inputs"])
        needed = {one.id for one in schema.inputs if not one.optional and one.io_type not in WIDGETS}
        assert needed <= {i["name"] for i in node["inputs"] if i["link"] is not None}, node["type"]
    for id, source, slot, target, at, kind in workflow["links"]:
        assert id in nodes[source]["outputs"][slot]["links"] and nodes[target]["inputs"][at]["link"] == id
        assert kind in (nodes[source]["outputs"][slot]["type"], nodes[target]["inputs"][at]["type"])
    assert all(node.get("mode", 0) == 0 for node in nodes.values())
    text = path.read_text(encoding="utf-8")
    assert str(Path.home()) not in text and "/home/" not in text and "\\\\" not in text


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_the_api_form_is_of_the_same_graph(path):
    workflow = json.loads(path.read_text(encoding="utf-8"))
    api = json.loads((path.parent / "api" / path.name).read_text(encoding="utf-8"))
    virtual = {"MarkdownNote", "Note"}
    assert {int(id): node["class_type"] for id, node in api.items()} == {
        node["id"]: node["type"] for node in workflow["nodes"] if node["type"] not in virtual}
    links = {(str(target), str(source), slot) for _, source, slot, target, _, _ in workflow["links"]}
    assert links == {(id, value[0], value[1]) for id, node in api.items() for value in node["inputs"].values()
                     if isinstance(value, list)}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_no_two_nodes_of_a_workflow_overlap(path):
    workflow = json.loads(path.read_text(encoding="utf-8"))
    boxes = [(n["pos"][0], n["pos"][1] - 30, n["pos"][0] + n["size"][0], n["pos"][1] + n["size"][1], n["type"])
             for n in workflow["nodes"]]
    for i, a in enumerate(boxes):
        for b in boxes[i + 1:]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (a, b)
    assert any(node["type"] == "MarkdownNote" for node in workflow["nodes"]) and len(workflow["groups"]) == 3
