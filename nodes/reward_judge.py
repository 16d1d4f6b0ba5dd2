"""Judges of numbers: reward models, several judges as one, and a second judge that audits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..reflect_core.judges import find_judge
from ..reflect_core.presets.choice import DTYPES
from ..reflect_core.types import UserError
from ..reflect_core.verifiers.rewards import REWARDS, SOURCES
from .judge import ReflectJudge
from .progress import speaking_as
from .schema import Judge, rare, schema

KINDS = ("reflect", "clip_vision", "LLM")
"""Folders below ComfyUI's `models` in which a reward model's folder is offered."""
NONE = "(none)"


class ReflectRewardJudge(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "ReflectRewardJudge", "models",
            [io.Combo.Input("kind", options=list(REWARDS), default="clip-score"),
             io.Combo.Input("model", options=list(_folders()) or [NONE]),
             io.Float.Input("threshold", default=-1.0, min=-1.0, max=1.0, step=0.05, round=0.001),
             rare(io.Combo, "second", options=[NONE, *_seconds()], default=NONE, optional=True),
             rare(io.Combo, "dtype", options=list(DTYPES), default="auto", optional=True)],
            [Judge.Output("judge"), io.String.Output("report")],
            search_aliases=["clipscore", "pickscore", "aesthetic", "reward model"])

    @classmethod
    def execute(cls, kind: str, model: str, threshold: float, second: str = NONE, dtype: str = "auto") -> io.NodeOutput:
        from .memory import Parts

        with speaking_as("Load Judge (reward model)"):
            folder = _folders().get(model)
            if folder is None:
                sources = ", or ".join("; ".join(f"{one.repository} ({one.size}; {one.licence})" for one in group)
                                       for group in SOURCES[kind])
                raise UserError(f"there is no model {model!r} for {kind}; expected a folder below "
                                f"{Path(folder_paths.models_dir) / KINDS[0]} with the files of {sources}; try to "
                                "reload the page after putting it there")
            extra = {"aesthetic": "head", "image-verifier": "base"}.get(kind)
            other = {**_seconds(), NONE: None}.get(second)
            options: dict[str, Any] = {"folder": str(folder), "device": "cpu", "dtype": dtype}
            options |= {} if threshold < 0 else {"threshold": threshold}
            options |= {extra: str(other)} if extra and other else {}
            judge = ReflectJudge(find_judge(kind, options))
            verifier = judge.actors.verifier
            judge.parts = Parts({name: [part] for name, part in verifier.parts.items()})
            verifier.places.manager = judge.parts.place
            judge.judge.options["device"] = judge.parts.device  # for a record, where it computes
            return io.NodeOutput(judge, "\n".join(judge.judge.connect()))


class ReflectEnsemble(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        weights = [io.Float.Input(f"weight_{k}", default=1.0, min=0.01, max=100.0, step=0.1, round=0.01)
                   for k in (1, 2)]
        return schema(
            "ReflectEnsemble", "models",
            [Judge.Input("judge_1"), Judge.Input("judge_2"), Judge.Input("judge_3", optional=True), *weights,
             io.Float.Input("weight_3", default=1.0, min=0.01, max=100.0, step=0.1, round=0.01, optional=True),
             io.Float.Input("threshold", default=-1.0, min=-1.0, max=1.0, step=0.05, round=0.001)],
            [Judge.Output("judge")], search_aliases=["verifier ensemble", "weighted judges"])

    @classmethod
    def execute(cls, judge_1: ReflectJudge, judge_2: ReflectJudge, weight_1: float, weight_2: float, threshold: float,
                judge_3: ReflectJudge | None = None, weight_3: float = 1.0) -> io.NodeOutput:
        with speaking_as("Judge Ensemble"):
            pairs = [(judge_1, weight_1), (judge_2, weight_2), (judge_3, weight_3)]
            members = [{"judge": one.judge, "weight": weight} for one, weight in pairs if one is not None]
            chosen = {} if threshold < 0 else {"threshold": threshold}
            together = ReflectJudge(find_judge("ensemble", {"members": members, **chosen}))
            together.parts = [one for one, _ in pairs]
            return io.NodeOutput(together)


class ReflectAudit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema("ReflectAudit", "models", [Judge.Input("judge_in"), Judge.Input("audit")],
                      [Judge.Output("judge")], search_aliases=["second judge", "over-optimisation"])

    @classmethod
    def execute(cls, judge_in: ReflectJudge, audit: ReflectJudge) -> io.NodeOutput:
        with speaking_as("Judge Audit"):
            together = ReflectJudge(find_judge("audited", {"judge": judge_in.judge, "audit": audit.judge}))
            together.parts = [judge_in, audit]
            return io.NodeOutput(together)


def _folders() -> dict[str, Path]:
    """Folders with weights of a reward model, by name."""
    found: dict[str, Path] = {}
    for kind in KINDS:
        for root in folder_paths.get_folder_paths(kind):
            for config in (*sorted(Path(root).glob("*/config.json")), *sorted(Path(root).glob("*/model_config.json"))):
                found.setdefault(config.parent.name, config.parent)
    return found


def _seconds() -> dict[str, Path]:
    """What a reward may need besides: an aesthetic head's file, or the folder of the model that it was tuned from."""
    heads = {path.name: path for root in folder_paths.get_folder_paths(KINDS[0])
             for path in sorted(Path(root).rglob("*.safetensors")) if path.stat().st_size < 64 << 20}
    return {**_folders(), **heads}
