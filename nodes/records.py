"""Show Run and Load Run: a run to look at, and runs on disk."""

from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.latest import io, ui

from ..reflect_core.report import tree_picture
from ..reflect_core.search import keep, relay
from ..reflect_core.search.record import LINES
from ..reflect_core.types import UserError
from .images import to_image
from .progress import speaking_as
from .schema import Run, schema

PREFIX = "reflect/run"
NO_RECORD = "(no run is saved yet)"


class ReflectShowRun(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "ReflectShowRun", "",
            [Run.Input("run_in"), io.Boolean.Input("save", default=False), io.String.Input("prefix", default=PREFIX)],
            [io.Image.Output("tree")], is_output_node=True, search_aliases=["search tree", "report"])

    @classmethod
    def execute(cls, run_in: relay.RunSoFar, save: bool, prefix: str) -> io.NodeOutput:
        with speaking_as("Show Run"):
            relay.expect_run(run_in)
            chosen = None if run_in.chosen is None else run_in.run.candidate(run_in.chosen)
            picture = tree_picture(run_in.run, header=keep.header_of(run_in), chosen=chosen, first_round=1)
            image = to_image([picture])
            if save:
                keep.save(run_in, _free_folder(prefix))
            return io.NodeOutput(image, ui=ui.PreviewImage(image, cls=cls))


class ReflectLoadRun(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema("ReflectLoadRun", "", [io.Combo.Input("record", options=_records() or [NO_RECORD])],
                      [Run.Output("run")])

    @classmethod
    def fingerprint_inputs(cls, record: str = "") -> str:
        try:
            stat = (find_record(record) / LINES).stat()
        except (UserError, OSError):
            return ""
        return f"{stat.st_size} {stat.st_mtime_ns}"

    @classmethod
    def execute(cls, record: str) -> io.NodeOutput:
        with speaking_as("Load Run"):
            return io.NodeOutput(keep.load_run(find_record(record)))


def _roots() -> list[Path]:
    return [Path(folder_paths.get_output_directory()), Path(folder_paths.get_input_directory())]


def _records() -> list[str]:
    """Records in the output and input folder, three levels deep at most, newest first."""
    found = {}
    for root in _roots():
        for pattern in (f"*/{LINES}", f"*/*/{LINES}", f"*/*/*/{LINES}"):
            for path in root.glob(pattern):
                found.setdefault(path.parent.relative_to(root).as_posix(), path.stat().st_mtime)
    return sorted(found, key=found.get, reverse=True)


def find_record(name: str) -> Path:
    """UserError for what is not below the output or input folder, or is no record."""
    for root in _roots():
        folder = (root / name).resolve()
        if folder.is_relative_to(root.resolve()) and (folder / LINES).is_file():
            return folder
    raise UserError(f"there is no record {name!r}; expected the path of one in ComfyUI's output or input folder; try "
                    "to save a run with Show Run, then reload the page")


def _free_folder(prefix: str) -> Path:
    """A new folder in the output folder. UserError for a place outside of it."""
    try:
        folder, name, number, _, _ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    except Exception as error:  # ComfyUI raises a plain one
        raise UserError(f"cannot save to {prefix!r} ({error}); expected a path within the output folder") from error
    while (path := Path(folder) / f"{name}_{number:05}").exists():
        number += 1
    return path
