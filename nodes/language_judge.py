"""Language models that see pictures as judges: behind a server, or in this process under ComfyUI's memory manager."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..reflect_core.judges import find_judge
from ..reflect_core.judges.options import ASK
from ..reflect_core.presets.choice import DTYPES
from ..reflect_core.types import UserError
from ..reflect_core.verifiers.rubric import TAGS
from .judge import ReflectJudge
from .model import KEEP, QUANTISE
from .progress import speaking_as
from .schema import Judge, rare, schema

KINDS = ("LLM", "text_encoders", "reflect")
"""Folders below ComfyUI's `models` in which a folder of a language model is offered."""
NONE = "(none found)"
REFLECT = ("edits", "sentence", "tuned", "released", "none")

folder_paths.add_model_folder_path("LLM", str(Path(folder_paths.models_dir) / "LLM"))


def asking() -> list[io.Input]:
    """What every language model is asked."""
    return [io.Combo.Input("ask", options=list(ASK), default="checks"),
            io.Combo.Input("reflect", options=list(REFLECT), default="edits"),
            io.Float.Input("threshold", default=-1.0, min=-1.0, max=1.0, step=0.05, round=0.001),
            io.String.Input("checks", multiline=True, dynamic_prompts=False, default="", optional=True),
            rare(io.Combo, "tag", options=list(TAGS), default="general", optional=True)]


def options(ask: str, reflect: str, threshold: float, checks: str, tag: str) -> dict[str, Any]:
    """What those widgets say, as options of a judge."""
    own = [line.strip() for line in checks.splitlines() if line.strip()]
    return {"ask": ask, "reflect": reflect, "tag": tag, **({} if threshold < 0 else {"threshold": threshold}),
            **({"checks": own} if own else {})}


class ReflectServerJudge(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "ReflectServerJudge", "models",
            [io.String.Input("address", default="http://127.0.0.1:1234/v1"), io.String.Input("model", default=""),
             *asking(), rare(io.Int, "at_once", default=8, min=1, max=64, optional=True),
             rare(io.Int, "side", default=1024, min=28, max=4096, optional=True),
             rare(io.Int, "timeout", default=120, min=1, max=3600, optional=True)],
            [Judge.Output("judge"), io.String.Output("report")],
            search_aliases=["openai", "ollama", "vllm", "llama.cpp", "lm studio", "vlm judge"])

    @classmethod
    def execute(cls, address: str, model: str, ask: str, reflect: str, threshold: float, checks: str = "",
                tag: str = "general", at_once: int = 8, side: int = 1024, timeout: int = 120) -> io.NodeOutput:
        with speaking_as("Load Judge (server)"):
            judge = ReflectJudge(find_judge("server", {
                "url": address, "model": model.strip(), "concurrency": at_once, "side": side, "timeout": timeout,
                **options(ask, reflect, threshold, checks, tag)}))
            judge.wait()
            return io.NodeOutput(judge, "\n".join(judge.judge.connect()))


class ReflectLocalJudge(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "ReflectLocalJudge", "models",
            [io.Combo.Input("model", options=list(_folders()) or [NONE]), *asking(),
             rare(io.Combo, "dtype", options=list(DTYPES), default="auto", optional=True),
             rare(io.Combo, "offload", options=list(KEEP), default=KEEP[0], optional=True),
             rare(io.Int, "side", default=1024, min=28, max=4096, optional=True),
             rare(io.Combo, "quantise", options=list(QUANTISE), default=QUANTISE[0], optional=True)],
            [Judge.Output("judge"), io.String.Output("report")],
            search_aliases=["qwen-vl", "vlm judge", "verifier"])

    @classmethod
    def fingerprint_inputs(cls, model: str = "", **_: Any) -> str:
        """Loaded anew when a file has changed."""
        folder = _folders().get(model)
        files = sorted(folder.glob("*")) if folder else []
        return ";".join(f"{p.name} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in files if p.is_file())

    @classmethod
    def execute(cls, model: str, ask: str, reflect: str, threshold: float, checks: str = "", tag: str = "general",
                dtype: str = "auto", offload: str = KEEP[0], side: int = 1024, quantise: str = QUANTISE[0]
                ) -> io.NodeOutput:
        from .memory import Parts, best_dtype, pack_room

        with speaking_as("Load Judge (language model)"):
            folder = _folders().get(model)
            if folder is None:
                raise UserError(f"there is no language model {model!r}; expected a folder with config.json, "
                                f"safetensors, tokenizer and preprocessor_config.json below "
                                f"{Path(folder_paths.models_dir) / 'LLM'}, such as Qwen2.5-VL-7B-Instruct from "
                                "huggingface.co; try to reload the page after putting it there, or Load Judge (server)")
            weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
            how = {} if quantise == QUANTISE[0] else {"quantise": quantise}
            if quantise == "nf4":  # bitsandbytes packs it on the card, and it then waits as all others do
                how |= {"device": pack_room(weights), "offload": "component"}
            judge = ReflectJudge(find_judge("local", {
                "folder": str(folder), "device": "cpu", "dtype": best_dtype(dtype, weights // 2), "side": side, **how,
                **options(ask, reflect, threshold, checks, tag)}))
            chat = judge.judge.chat
            judge.judge.given.pop("offload", None)
            # The generator and the judge are never both forced to stay: the manager moves one for the other.
            judge.parts = Parts({"judge": [chat.model]}, offload)
            chat.places.manager, chat.places.rest = judge.parts.place, lambda: None
            judge.judge.given["device"] = judge.parts.device  # for a record, where it computes
            judge.wait()
            return io.NodeOutput(judge, "\n".join(judge.judge.connect()))


def _folders() -> dict[str, Path]:
    """Language models in the registered folders, by the name of their folder."""
    found: dict[str, Path] = {}
    for kind in KINDS:
        for root in folder_paths.get_folder_paths(kind):
            for config in sorted(Path(root).glob("*/config.json")):
                if any((config.parent / name).is_file() for name in ("preprocessor_config.json",
                                                                     "processor_config.json")):
                    found.setdefault(config.parent.name, config.parent)
    return found
