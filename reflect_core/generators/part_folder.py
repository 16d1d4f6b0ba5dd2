"""Components in folders, as diffusers and transformers save them: a model's own, and one that lies by itself.

A family has its classes by component, in `Classes`; the first of each is what a folder of it alone is read with.
Configs and the headers of weights are read, and no weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..model_files import check_component, check_model_folder, read_json
from ..types import UserError

Classes = Mapping[str, tuple[tuple[str, str], ...]]
"""Component -> (library, class), those that it may be of."""


@dataclass(frozen=True)
class FolderPart:
    """A component as diffusers or transformers saved it."""

    name: str
    folder: Path
    """Its own."""
    entry: list[str]
    """Library and class."""
    config: dict[str, Any]
    """Its config.json; {} for a tokenizer or scheduler."""

    @property
    def path(self) -> Path:
        return self.folder


def check_index(folder: str | Path, names: Iterable[str], classes: Classes, family: str) -> dict[str, Any]:
    """The model index of a folder that has every file of these components, and them only of the family's classes.

    `family`: what an error says of it. Raises UserError, naming the file.
    """
    folder, names = Path(folder), tuple(names)
    index = check_model_folder(folder, names)
    for name in names:
        if tuple(index[name]) not in classes[name]:
            library, kind = index[name]
            raise UserError(f"{folder / 'model_index.json'}: {name} is a {kind} of {library}; expected "
                            f"{' or '.join(map(' '.join, classes[name]))}; {family}")
    return index


def own_part(name: str, folder: Path, index: Mapping[str, Any]) -> FolderPart:
    """A component in a model's folder, which has been checked."""
    return _part(name, folder / name, list(index[name]))


def part_alone(name: str, where: Path, classes: Classes, family: str) -> FolderPart:
    """A component that somebody has named by itself: its folder, or that of a whole model. UserError, naming the
    file."""
    if (where / "model_index.json").is_file():
        return own_part(name, where, check_index(where, (name,), classes, family))
    entry = list(classes[name][0])
    if name.startswith("tokenizer"):
        entry[1] = _tokenizer_class(where, entry[1])
    part, kinds = _part(name, where, entry), [kind for _, kind in classes[name]]
    # What transformers saved names the class that it was trained as, of which ours may be a part.
    kind = part.config.get("_class_name") or entry[0] == "diffusers" and str(part.config.get("architectures") or "")
    if kind and kind not in kinds:
        raise UserError(f"{where / 'config.json'}: is of a {kind}; expected {' or '.join(kinds)} as {name}; {family}")
    check_component(where, entry[1])
    return part


def _part(name: str, folder: Path, entry: list[str]) -> FolderPart:
    is_model = not name.startswith("tokenizer") and name != "scheduler"
    why = f"expected the folder of a {name}; try the one above or below"
    return FolderPart(name, folder, entry, read_json(folder / "config.json", why) if is_model else {})


def _tokenizer_class(folder: Path, usual: str) -> str:
    """A folder whose tokenizer needs no class of its own says so; any other is read with the family's."""
    said = read_json(folder / "tokenizer_config.json", "expected the folder of a tokenizer").get("tokenizer_class")
    return "PreTrainedTokenizerFast" if said in ("PreTrainedTokenizerFast", "TokenizersBackend") else usual
