"""FLUX.1-dev's near relatives, whose files have its names and shapes: told by what they are called.

Kontext, Krea and merges are FLUX.1-dev trained on or mixed, so no tensor tells them apart. What does is the name of
the file, and what its header says of it: `modelspec.architecture` as SwarmUI and the trainers write it, such as
'Flux.1-dev/kontext', `modelspec.title`, a merger's own notes, and in GGUF `general.name`. Kontext is an editor, and a
corrector on it draws nonsense: it is refused. Of the others a corrector may make something, so there is a warning.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from ...types import UserError

if TYPE_CHECKING:
    from .single_files import FilePart

ARCHITECTURE = "modelspec.architecture"
_TITLES = ("modelspec.title", "general.name", "general.basename", "general.finetune")
_MERGED = ("modelspec.merged_from", "sd_merge_models", "sd_merge_recipe")
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
"""Of names as people write them: flux1-dev-kontext_fp8, fluxKontextDev, FLUX.1-Krea-dev."""
KONTEXT = r"(flux)?kontext(dev)?"
_RELATIVES = ((r"(flux)?krea(dev)?", "FLUX.1 Krea"), (r"(flux)?schnell", "FLUX.1-schnell, or has some of it"),
              (r"merged?|merges|mix", "a merge"), (r"hyper|turbo|lightning", "made for a few steps"),
              (r"(de|un)-?distill(ed)?", "a FLUX.1 without distilled guidance"))
_MEANS = "a corrector that was made for FLUX.1-dev may correct worse on it; try FLUX.1-dev's own file if it does"


def check_relative(part: FilePart) -> None:
    """UserError for a transformer that is called Kontext, a warning for one that is something else near FLUX.1-dev.

    A word is a word: 'my-kontextual-style' is no Kontext. Who knows better gives the file another name.
    """
    about, path = part.file.about, part.path
    name, architecture = _words(path.stem), about.get(ARCHITECTURE, "")
    named = _is(KONTEXT, name)
    if named or _is(KONTEXT, _words(architecture)):
        where = "by its name" if named else f"as its header says ({ARCHITECTURE} {architecture!r})"
        cure = "; if it is FLUX.1-dev all the same, give the file another name" if named else ""
        raise UserError(kontext_said(path, where) + cure)
    if not part.config["guidance_embeds"]:
        warnings.warn(f"{path}: takes no guidance, as FLUX.1-schnell, which is made for 4 steps; {_MEANS}",
                      stacklevel=2)
        return
    said = {"by its name": name, **{f"as its header says ({key} {about[key]!r})": _words(about[key])
                                    for key in (ARCHITECTURE, *_TITLES) if key in about}}
    for where, words in said.items():
        for pattern, what in ((KONTEXT, "FLUX.1 Kontext"), *_RELATIVES):
            if _is(pattern, words):
                warnings.warn(f"{path}: is {what} {where}, and no tensor tells it from FLUX.1-dev; {_MEANS}",
                              stacklevel=2)
                return
    if note := next((key for key in _MERGED if about.get(key)), None):
        warnings.warn(f"{path}: is a merge, as its header says ({note}); {_MEANS}", stacklevel=2)


def kontext_said(path: Path, where: str) -> str:
    """What to say of a Kontext in the place of FLUX.1-dev's transformer."""
    return (f"{path}: is FLUX.1 Kontext {where}, an editor, on which a corrector draws nonsense; expected FLUX.1-dev's "
            "transformer; try flux1-dev.safetensors, or the editor itself: --model kontext ('kontext' at Load "
            "Reflective DiT)")


def _words(name: str) -> str:
    """-flux-dev-kontext-"""
    return f"-{'-'.join(_WORD.findall(name)).lower()}-"


def _is(pattern: str, words: str) -> bool:
    return re.search(f"-({pattern})-", words) is not None
