"""As much of ComfyUI as the nodes need to be imported and to describe themselves; nothing of it computes.

`load_pack()` gives the pack's node classes by id. The schema takes what ComfyUI 0.3.64 takes, and no more:
an unknown keyword is an error there too.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import types
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WIDGETS = {"INT", "FLOAT", "STRING", "COMBO", "BOOLEAN"}


def socket(kind: str):
    class Input:
        def __init__(self, id, display_name=None, optional=False, tooltip=None, lazy=None, extra_dict=None, **rest):
            if kind not in WIDGETS and rest:
                raise TypeError(f"a socket takes no {sorted(rest)}")
            self.io_type, self.id, self.display_name, self.optional = kind, id, display_name, optional
            self.tooltip, self.lazy, self.extra_dict, self.rest = tooltip, lazy, extra_dict, rest

    class Output:
        def __init__(self, id=None, display_name=None, tooltip=None, is_output_list=False):
            self.io_type, self.id, self.display_name, self.tooltip = kind, id, display_name, tooltip

    return type(kind, (), {"Input": Input, "Output": Output, "io_type": kind})


@dataclass
class Schema:
    node_id: str
    display_name: str = None
    category: str = "sd"
    inputs: list = field(default_factory=list)
    outputs: list = field(default_factory=list)
    hidden: list = field(default_factory=list)
    description: str = ""
    is_input_list: bool = False
    is_output_node: bool = False
    is_deprecated: bool = False
    is_experimental: bool = False
    is_api_node: bool = False
    not_idempotent: bool = False
    enable_expand: bool = False


class NodeOutput:
    def __init__(self, *args, ui=None, expand=None, block_execution=None):
        self.args, self.ui, self.expand = args, ui, expand


def modules(base: Path) -> dict[str, types.ModuleType]:
    hidden = types.SimpleNamespace(unique_id="unique_id", dynprompt="dynprompt", extra_pnginfo="extra_pnginfo")
    io = types.SimpleNamespace(
        Int=socket("INT"), Float=socket("FLOAT"), String=socket("STRING"), Combo=socket("COMBO"),
        Boolean=socket("BOOLEAN"), Image=socket("IMAGE"), Custom=socket, Schema=Schema, NodeOutput=NodeOutput,
        ComfyNode=type("ComfyNode", (), {}), Hidden=hidden, Input=object)
    made = {name: types.ModuleType(name) for name in (
        "comfy_api", "comfy_api.latest", "comfy", "comfy.model_management", "comfy.utils", "folder_paths")}
    latest, manager, folders = made["comfy_api.latest"], made["comfy.model_management"], made["folder_paths"]
    latest.io, latest.ui = io, types.SimpleNamespace(PreviewImage=lambda *a, **k: None)
    latest.ComfyExtension = type("ComfyExtension", (), {})
    manager.InterruptProcessingException = type("InterruptProcessingException", (Exception,), {})
    manager.OOM_EXCEPTION = MemoryError
    manager.throw_exception_if_processing_interrupted = lambda: None
    made["comfy.utils"].ProgressBar = lambda total, node_id=None: types.SimpleNamespace(
        update_absolute=lambda *a, **k: None)
    made["comfy"].model_management, made["comfy"].utils = manager, made["comfy.utils"]
    folders.models_dir = str(base / "models")
    folders.add_model_folder_path = lambda *a: None
    folders.get_filename_list = lambda kind: []
    folders.get_folder_paths = lambda kind: [str(base / "models" / kind)]
    folders.get_full_path = lambda kind, name: None
    folders.get_output_directory, folders.get_input_directory = lambda: str(base / "out"), lambda: str(base / "in")
    return made


@lru_cache(maxsize=1)
def load_pack(base: Path = Path("/nonexistent")) -> dict[str, Any]:
    """The node classes by id, imported as ComfyUI imports a pack that is not installed."""
    sys.modules.update({name: module for name, module in modules(base).items() if name not in sys.modules})
    name = "pack_of_reflect"
    for module in ("comfy_api", "comfy_api.latest"):
        sys.modules[module].__spec__ = importlib.util.spec_from_loader(module, loader=None)
    spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    pack = importlib.util.module_from_spec(spec)
    sys.modules[name] = pack
    spec.loader.exec_module(pack)
    return {node.define_schema().node_id: node for node in asyncio.run(pack.comfy_entrypoint().get_node_list())}
