"""What a running node shows: steps on its bar, a rough picture, a line of text; and Cancel, after each step.

Each message to the browser carries the state of all nodes, and a small model takes a hundred steps a
second: what is shown is limited to a few messages a second, Cancel is not.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management as manager
import comfy.utils
from PIL import Image, ImageDraw, ImageFont

from ..reflect_core.search.events import Event
from ..reflect_core.text import readable
from ..reflect_core.types import UserError

EVERY = 0.25
"""Least seconds between two messages."""
PREVIEW_SIDE = 192
"""Pixels; a rough picture is enlarged to this, so that it can be seen."""
CAPTION = 13
"""Pixels of the letters below it."""


class NodeProgress:
    """An `on_event` callback for one node. `node` is its id, `display` that of the node on the page.

    With `on_picture` the text goes below the rough picture and not into a line of its own, which the classic
    page would lay over the picture.
    """

    def __init__(self, node: str, display: str | None = None, rounds: int | None = None,
                 on_picture: bool = False) -> None:
        self.display, self.rounds = display or node, rounds
        self.caption = "" if on_picture else None
        self.bar = comfy.utils.ProgressBar(1, node_id=node)
        self._shown, self._best = 0.0, 0.0

    def __call__(self, event: Event) -> None:
        manager.throw_exception_if_processing_interrupted()
        if event.kind == "step":
            self._step(event)
        elif event.kind == "judged":
            self._best = max(self._best, event.score)
            self.say(f"{self._round(event.round)}, score {self._best:.2f}")
        elif event.kind in ("reflected", "refined") and event.text:
            self.say(f"{self._round(event.round - 1)}: {readable(event.text)}")

    def say(self, text: str) -> None:
        """A line on the node."""
        if self.caption is not None:
            self.caption = text
            return
        from server import PromptServer

        server = getattr(PromptServer, "instance", None)
        if server is not None and server.client_id is not None:
            server.send_progress_text(text, self.display, server.client_id)

    def _round(self, round: int) -> str:
        return f"round {round + 1}" if self.rounds is None else f"round {round + 1}/{self.rounds}"

    def _step(self, event: Event) -> None:
        now = time.monotonic()
        if now - self._shown < EVERY and event.step < event.steps:
            return
        if now - self._shown < EVERY / 4:
            return
        self._shown = now
        preview = None
        if event.preview is not None and (made := event.preview()):
            preview = ("JPEG", _captioned(_enlarged(made[0]), self.caption), None)
        self.bar.update_absolute(event.step, event.steps, preview)


def _enlarged(picture: Image.Image) -> Image.Image:
    times = max(1, PREVIEW_SIDE // max(picture.size))
    return picture.resize((picture.width * times, picture.height * times), Image.Resampling.BILINEAR)


def _captioned(picture: Image.Image, text: str | None) -> Image.Image:
    if not text:
        return picture
    font = ImageFont.load_default(CAPTION)
    page = Image.new("RGB", (picture.width, picture.height + 2 * CAPTION), "#1b1b1b")
    page.paste(picture)
    while font.getlength(text) > page.width - CAPTION and len(text) > 4:
        text = text[:-4].rstrip() + "..."
    ImageDraw.Draw(page).text((CAPTION / 2, picture.height + CAPTION / 3), text, "#dddddd", font)
    return page


@contextmanager
def speaking_as(node: str, round: int | None = None) -> Iterator[None]:
    """Errors inside say which node and, in a loop, which round: the core blames the node that expands."""
    where = node if round is None else f"round {round + 1}, {node}"
    try:
        yield
    except manager.InterruptProcessingException:
        raise
    except Exception as error:
        if isinstance(error, manager.OOM_EXCEPTION) or isinstance(error.__cause__, manager.OOM_EXCEPTION):
            # The core unloads everything when it sees its own kind of this error.
            raise manager.OOM_EXCEPTION(f"{where}: not enough memory on the card; try 'streamed' at offload, fp8 or "
                                        "nf4 at quantise, or vae tiling, of the node that loads the model; fewer "
                                        "candidates; or a smaller size") from error
        kind = UserError if isinstance(error, UserError) else RuntimeError
        raise kind(f"{where}: {str(error) or type(error).__name__}") from error
