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

    def _connect(self, judges: bool) -> list[str]:
        """Asks the server what it has and can before anything is drawn."""
        asker, actors = Asker(self.chat), self.actors()
        told = probe(self.chat, asker.ask_ahead, self.ask.ask if judges else "words")
        # What that cost is the cost of whoever is asked in the run.
        speaks = next((one for one in (actors.reflector, actors.refiner) if isinstance(one, Asker)), actors.verifier)
        (actors.verifier if judges else speaks).take_over(asker)
        self.given |= {"model": self.chat.options.model, "url": self.chat.options.url}
        self.found = told.record()
        return [told.summary(), *told.warnings]
