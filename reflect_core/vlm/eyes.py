"""How a question about a picture becomes a model's inputs: its chat template, its tokens, the picture's patches."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..compat import image_processor
from ..generators.rgb import as_rgb
from ..model_files import read_json
from ..types import Picture, UserError
from .chat import Question

QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
"""Model types whose pictures are a grid of patches, each square of them one token."""
PACKAGES = {"torchvision": "torchvision, of the version that fits torch", "num2words": "num2words",
            "sentencepiece": "sentencepiece", "tiktoken": "tiktoken", "protobuf": "protobuf"}
"""What processors and tokenizers need besides, as pip is to be told."""
_OPEN = re.compile(r"<think(?:ing)?>\s*$", re.IGNORECASE)


@dataclass(frozen=True)
class Inputs:
    """A question for a model."""

    ids: Tensor
    """(1, L)."""
    along: Mapping[str, Tensor]
    """What has a number for each token, (1, L) too."""
    vision: Mapping[str, Tensor]
    """The picture; empty where there is none."""
    first: int
    """Place of the picture's first token, and `last` of its last; L and -1 where there is none."""
    last: int
    thinks: bool = False
    """It ends where a thought begins: the answer comes behind that."""


class QwenEyes:
    """Of the Qwen-VL families. Their own processor needs torchvision, for films; a picture needs Pillow alone."""

    def __init__(self, folder: Path, image_token: int, side: int) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.pictures, self.template, self.side = image_processor(folder), template_of(folder, self.tokenizer), side
        self.image_token, self.marks = image_token, marks_of(self.tokenizer)

    def look(self, picture: Picture) -> dict[str, Tensor]:
        """pixel_values (patches, values of one) and image_grid_thw (1, 3)."""
        return dict(self.pictures(images=[shrunk(picture, self.side)], return_tensors="pt"))

    def inputs(self, question: Question, sight: Mapping[str, Tensor] | None) -> Inputs:
        text = worded(self.tokenizer.apply_chat_template, self.template, question, self.marks)
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        if sight is not None:
            if self.image_token not in ids:
                raise UserError("the model's chat template has no place for a picture; expected that of a model that "
                                "sees; try to download its tokenizer's files again")
            count = int(sight["image_grid_thw"][0].prod()) // self.pictures.merge_size**2
            at = ids.index(self.image_token)
            ids[at:at + 1] = [self.image_token] * count
        tokens = torch.tensor([ids])
        along = {"mm_token_type_ids": (tokens == self.image_token).int()} if sight is not None else {}
        return placed(tokens, along, sight or {}, self.image_token, text)


class AnyEyes:
    """Of any other model, by its own processor, which looks at the picture for each question again."""

    def __init__(self, folder: Path, image_token: int, side: int) -> None:
        from transformers import AutoProcessor

        # Without `use_fast`, which is the tokenizer's, too, in transformers 4.
        self.processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        with suppress(ValueError):  # some are by torchvision alone
            self.processor.image_processor = image_processor(folder)
        self.tokenizer = self.processor.tokenizer
        self.template, self.side, self.image_token = template_of(folder, self.processor), side, image_token
        self.marks = marks_of(self.tokenizer)

    def look(self, picture: Picture) -> Picture:
        return shrunk(picture, self.side)

    def inputs(self, question: Question, sight: Picture | None) -> Inputs:
        text = worded(self.processor.apply_chat_template, self.template, question, self.marks)
        pictures = {} if sight is None else {"images": [sight]}
        # Where the template leaves the first token to the tokenizer (LLaVA 1.5), as transformers itself does it.
        begun = bool(self.tokenizer.bos_token) and text.startswith(self.tokenizer.bos_token)
        made = dict(self.processor(text=[text], return_tensors="pt", add_special_tokens=not begun, **pictures))
        ids = made.pop("input_ids")
        made.pop("attention_mask", None)
        along = {name: value for name, value in made.items() if value.shape == ids.shape}
        vision = {name: value for name, value in made.items() if name not in along and sight is not None}
        return placed(ids, along, vision, self.image_token, text)


Eyes = QwenEyes | AnyEyes


def open_eyes(folder: Path, config: Any, side: int) -> Eyes:
    """Those of a model by its config. UserError for one that has no picture in its prompts, or files that are none."""
    token = getattr(config, "image_token_id", None)
    token = getattr(config, "image_token_index", None) if token is None else token
    if token is None:
        raise UserError(f"{folder}: a model of type {config.model_type!r} has no token for a picture; expected a "
                        "language model that sees; try one with -VL in its name")
    try:
        return (QwenEyes if config.model_type in QWEN else AnyEyes)(folder, token, side)
    except UserError:
        raise
    except Exception as error:  # whatever transformers raises for a broken file, or a package that is not there
        raise _unusable(folder, error) from error


def _unusable(folder: Path, error: BaseException | None) -> UserError:
    said, needs = " ".join(str(error).split())[:300] or type(error).__name__, isinstance(error, ImportError)
    causes: list[str] = []
    while error is not None:
        causes.append(str(error).lower())
        error = error.__cause__ or error.__context__
    package = next((how for text in causes for name, how in PACKAGES.items() if name in text), None)
    if package is not None:
        return UserError(f"{folder}: its tokenizer or processor needs another package ({said}); expected that it is "
                         f"installed; try pip install {package}")
    cure = "to install what it names" if needs else "to download the model again"
    return UserError(f"{folder}: its tokenizer or processor cannot be loaded ({said}); expected tokenizer.json, "
                     f"tokenizer_config.json and preprocessor_config.json as on the hub; try {cure}")


def worded(apply: Callable[..., str], template: str, question: Question, marks: Sequence[str]) -> str:
    """The chat as a model's template words it, so that it does not think aloud where a template can say that. `apply`:
    of its tokenizer or processor. Where the template takes no system turn, that is told with the first question.
    UserError for a template that takes neither."""
    from jinja2 import TemplateError

    said = {"enable_thinking": False} if "enable_thinking" in template else {}
    for asked in (question, folded(question)) if question.system else (question,):
        try:
            return apply(messages(asked, marks), chat_template=template, tokenize=False, add_generation_prompt=True,
                         **said)
        except (TemplateError, TypeError, ValueError, AttributeError, KeyError) as error:
            why = error
    raise UserError(f"the model's chat template cannot be used ({' '.join(str(why).split())[:200]}); expected one for "
                    "a user's words and a picture; try an instruction-tuned model, or to download its tokenizer's "
                    "files again") from why


def folded(question: Question) -> Question:
    """The same without a system turn, which the first question begins with."""
    if not question.before:
        return replace(question, system="", text=f"{question.system}\n\n{question.text}")
    (first, reply), *others = question.before
    return replace(question, system="", before=((f"{question.system}\n\n{first}", reply), *others))


def marks_of(tokenizer: Any) -> list[str]:
    """The words that are commands to a model: turns of a chat, places of pictures. Longer ones first."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return sorted({mark for mark in (*added, *tokenizer.all_special_tokens) if mark.strip()}, key=len, reverse=True)


def harmless(text: str, marks: Sequence[str]) -> str:
    """A text of which no part is a command: a prompt or another model's words could else end a turn and begin one."""
    for mark in marks:
        text = text.replace(mark, f"{mark[0]} {mark[1:]}" if len(mark) > 1 else " ")
    return text


def messages(question: Question, marks: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The chat, as templates read it; the picture before the first words. `marks`: see `harmless`."""
    chat: list[dict[str, Any]] = []
    if question.system:
        chat.append({"role": "system", "content": [{"type": "text", "text": question.system}]})
    for place, text in enumerate([*(text for turn in question.before for text in turn), question.text]):
        content: list[dict[str, str]] = [{"type": "text", "text": harmless(text, marks)}]
        if place == 0 and question.picture is not None:
            content.insert(0, {"type": "image"})
        chat.append({"role": "assistant" if place % 2 else "user", "content": content})
    return chat


def template_of(folder: Path, owner: Any) -> str:
    """The chat template: the tokenizer's or processor's own, or that of a `chat_template.json` beside it."""
    template = getattr(owner, "chat_template", None)
    file = folder / "chat_template.json"
    if not template and file.is_file():
        template = read_json(file, "").get("chat_template")
    if not isinstance(template, str):
        raise UserError(f"{folder}: has no chat template; expected one in tokenizer_config.json, chat_template.json or "
                        "chat_template.jinja; try an instruction-tuned model, or to download it again")
    return template


def shrunk(picture: Picture, side: int) -> Picture:
    """RGB, no side longer than `side` pixels."""
    picture = as_rgb(picture)
    if max(picture.size) <= side:
        return picture
    scale = side / max(picture.size)
    return picture.resize(tuple(max(1, round(length * scale)) for length in picture.size), 1)


def placed(ids: Tensor, along: Mapping[str, Tensor], vision: Mapping[str, Tensor], image_token: int,
           text: str) -> Inputs:
    at = (ids[0] == image_token).nonzero().flatten().tolist() if vision else []
    return Inputs(ids, along, vision, at[0] if at else ids.shape[1], at[-1] if at else -1,
                  _OPEN.search(text) is not None)
