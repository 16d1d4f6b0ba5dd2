"""A language model that sees pictures, as judge, reflector and refiner in one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

from ..types import Reflector, UserError, Verifier
from ..vlm.chat import Chat
from .judge import Actors, Judge
from .options import AskOptions


class LanguageJudge(Judge):
    """What the two ways of asking one have in common. `options`: of `AskOptions` and of the way, by name."""

    kind: type
    """Dataclass of the way's own options."""

    def __init__(self, options: dict[str, Any]) -> None:
        own = {field.name for field in fields(AskOptions)}
        theirs = {field.name for field in fields(self.kind)}
        # Made for one prompt, and on its run's record; not an option that somebody gives.
        self.compiled = _compiled(options.get("compiled"))
        self.found: dict[str, Any] = {}
        """What was found out about it, for the record."""
        given = {name: value for name, value in options.items() if name not in ("compiled", "found")}
        if unknown := sorted(set(given) - own - theirs):
            raise UserError(f"the judge {self.name!r} has no option {unknown[0]!r}; expected one of "
                            f"{', '.join(sorted(own | theirs))}")
        lacking = [f.name for f in fields(self.kind) if f.default is MISSING and f.default_factory is MISSING
                   and f.name not in given]
        if lacking:
            raise UserError(f"the judge {self.name!r} lacks the option {lacking[0]!r}")
        self.given = given
        self.ask = AskOptions(**{name: value for name, value in given.items() if name in own})
        self.own = self.kind(**{name: value for name, value in given.items() if name in theirs})
        self._chat: Chat | None = None
        self._connected = False
        self._actors: Actors | None = None

    @abstractmethod
    def _open(self) -> Chat: ...

    @property
    def chat(self) -> Chat:
        """Opened when it is first wanted."""
        if self._chat is None:
            self._chat = self._open()
        return self._chat

    def actors(self, folder: Path | None = None) -> Actors:
        if self._actors is None:
            self._actors = Actors(self._verifier(), self._reflector(), self._refiner())
        return self._actors

    def settings(self, prompt: str | None = None) -> dict[str, Any]:
        compiled = [{"prompt": one, "checks": checks} for one, checks in self.compiled.items() if one == prompt]
        found = {"found": self.found} if self.found else {}
        return {"name": self.name, "options": {**self.given, **({"compiled": compiled} if compiled else {}), **found}}

    def suit(self, policy: str, scripts: str | None = None) -> None:
        if "scripts" not in self.given and scripts is not None:
            self.given["scripts"] = scripts
            self.ask = replace(self.ask, scripts=scripts)
        if "reflect" not in self.given:
            self.given["reflect"] = "released" if self.ask.ask == "released" else \
                "sentence" if policy == "reflect_dit" else "edits"
            self.ask = replace(self.ask, reflect=self.given["reflect"])

    def connect(self, judges: bool = True) -> list[str]:
        if self._connected:
            return []
        told = self._connect(judges)
        self._connected = True
        return told

    def prepare(self, prompt: str) -> list[str]:
        told = self.connect()
        if self.ask.ask != "checks":
            return told
        checks = self.actors().verifier.prepare(prompt)
        if self.ask.checks is None:
            self.compiled[prompt] = [list(check) for check in checks]
        return [*told, f"each picture is asked: {' '.join(text for _, text in checks)}"]

    @abstractmethod
    def _connect(self, judges: bool) -> list[str]: ...

    def wait_with(self, on_wait: Callable[[], Any] | None) -> None:
        self.chat.on_wait = on_wait

    def close(self) -> None:
        if self._chat is not None:
            self._chat.close()

    def _verifier(self) -> Verifier:
        ask, chat = self.ask, self.chat
        threshold = {} if ask.threshold is None else {"threshold": ask.threshold}
        if ask.ask == "match":
            from ..verifiers.match import MatchVerifier

            return MatchVerifier(chat, **threshold)
        if ask.ask == "rubric":
            from ..verifiers.rubric import RubricVerifier

            return RubricVerifier(chat, ask.tag, **threshold)
        if ask.ask == "released":
            from ..verifiers.released import ReleasedVerifier

            return ReleasedVerifier(chat, guard=ask.guard, **({} if ask.wording is None else {"wording": ask.wording}))
        from ..verifiers.checklist import ChecklistVerifier

        own = None if ask.checks is None else tuple(("other", text) for text in ask.checks)
        return ChecklistVerifier(chat, mean=ask.mean, checks=self.compiled, own=own, **threshold)

    def _reflector(self) -> Reflector:
        from ..reflectors import SilentReflector
        from ..reflectors.vlm import EditsReflector, ReleasedReflector, SentenceReflector, TunedReflector

        scripts = self._scripts
        makers = {"none": SilentReflector, "released": ReleasedReflector,
                  "sentence": lambda: SentenceReflector(self.chat, scripts),
                  "edits": lambda: EditsReflector(self.chat, self.ask.edits, scripts),
                  "tuned": lambda: TunedReflector(self.chat, self.ask.reflect_wording, scripts)}
        return makers[self.ask.reflect]()

    def _refiner(self):
        from ..refiners.vlm import VlmRefiner

        return VlmRefiner(self.chat, self._scripts) if self.ask.refine else None

    @property
    def _scripts(self) -> str:
        """What the generator reads. Reflect-DiT's reads much."""
        return self.ask.scripts or ("any" if self.ask.reflect == "sentence" else "latin")


def _compiled(recorded: Any) -> dict[str, list[list[str]]]:
    """Prompts' checks from a record. UserError where it was damaged."""
    try:
        return {str(one["prompt"]): [[str(about), str(text)] for about, text in one["checks"]]
                for one in recorded or ()}
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"the record's checks of its judge cannot be read ({error!r}); expected what Reflect wrote; "
                        "try a copy of the record") from None
