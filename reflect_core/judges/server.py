"""The judge 'server': a language model behind an OpenAI-compatible server."""

from __future__ import annotations

from ..vlm.chat import Asker, Chat
from ..vlm.probe import probe
from ..vlm.server import Server, ServerOptions
from .language import LanguageJudge


class ServerJudge(LanguageJudge):
    name = "server"
    kind = ServerOptions

    def _open(self) -> Chat:
        return Server(self.own)

    def _connect(self) -> list[str]:
        """Asks the server what it has and can before anything is drawn."""
        asker = Asker(self.chat)
        found = probe(self.chat, asker.ask_ahead, self.ask.ask)
        self.actors().verifier.take_over(asker)
        self.given["model"] = self.chat.options.model
        return [found.summary(), *found.warnings]
