"""A language model in this process, through transformers: any that its AutoModelForImageTextToText loads."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ..compat import positions
from ..generators.checking import DTYPES, OFFLOADS, check_device, is_whole, one_of
from ..generators.loading import check_info, dtype_word, quiet, wrapped
from ..generators.memory import enough_memory, is_out_of_memory
from ..generators.offload import HOME, Offload
from ..generators.places import Places
from ..generators.quantise import WAYS, check_quantise, loading_config, placed, quantised
from ..model_files import check_weights, read_json
from ..types import UserError
from .chat import ALL_THOUGHT, Answer, Question, without_thoughts
from .eyes import Eyes, Inputs, open_eyes
from .reader import Read, Reader
from .wire import spelling

CURES = "a smaller side, dtype=bfloat16, quantise=fp8, offload=component, device=cpu, or a smaller model"


@dataclass(frozen=True)
class LocalOptions:
    """UserError for values that make no sense."""

    folder: str
    """With config.json, safetensors, tokenizer and preprocessor, as on the hub."""
    device: str = "auto"
    dtype: str = "auto"
    side: int = 1024
    """Pixels of a picture's longer side at most."""
    quantise: str = "none"
    """Its weights in fewer bits, see `generators/quantise.py`."""
    offload: str = "none"
    """'component': it is on the device only while it answers, so that the model that draws has the room at other times;
    'layers': and of its blocks two at a time. See `generators/offload.py`; the answers are the same."""

    def __post_init__(self) -> None:
        one_of("dtype", self.dtype, DTYPES)
        one_of("quantise", self.quantise, WAYS)
        one_of("offload", self.offload, OFFLOADS)
        if not is_whole(self.side) or not 28 <= self.side <= 8192:
            raise UserError(f"option side is {self.side!r}; expected a whole number from 28 to 8192")
        for name in ("folder", "device"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise UserError(f"option {name} is {getattr(self, name)!r}; expected text")


class Local:
    """A `Chat` with a loaded model. Greedy, so that the same question has the same answer."""

    def __init__(self, model: nn.Module, eyes: Eyes, name: str = "") -> None:
        self.name, self.eyes, self.model = name, eyes, model
        self.on_wait: Callable[[], Any] | None = None
        self.reader = Reader(model)
        self._checked = False
        self.device: torch.device | None = None
        """Where it computed last; None before it has."""
        self.parts = {"judge": model}
        self.places = Places(self.parts)
        """Asked before the model computes; a memory manager sets `places.manager`."""
        self.yes, self.no = (torch.tensor(_ids_of(eyes.tokenizer, word)) for word in ("yes", "no"))
        self.thoughts, self.ended = (_marks_of(eyes.tokenizer, begin) for begin in ("<think", "</think"))
        self.ends = _ends(model, eyes.tokenizer)
        self.penalty = float(getattr(model.generation_config, "repetition_penalty", None) or 1.0)
        self.room = int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or 1 << 30)

    @classmethod
    def from_folder(cls, options: LocalOptions) -> Local:
        """Load it, without network. UserError for a folder that is not whole, or a model of another kind."""
        folder = Path(options.folder).expanduser()
        check_folder(folder)
        from transformers import AutoConfig, AutoModelForImageTextToText

        device = options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        check_device("--judge-option device=", device)
        dtype = {"auto": torch.float32 if device == "cpu" else torch.bfloat16}.get(options.dtype) or \
            getattr(torch, options.dtype)
        check_quantise(options.quantise, device, options.offload)
        how = loading_config(options.quantise, "transformers", dtype, device)
        home, pack_on = (device, None) if options.offload == "none" else (HOME, device)
        with quiet(), enough_memory(CURES):
            config = wrapped(folder / "config.json", lambda: AutoConfig.from_pretrained(folder, local_files_only=True))
            eyes = open_eyes(folder, config, options.side)
            model, info = wrapped(folder, lambda: AutoModelForImageTextToText.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True,
                **{dtype_word(True): dtype}, **how))
            check_info(folder, "transformers", model, info)
            model = placed(model if how else quantised(model, options.quantise, dtype), options.quantise, home, pack_on)
            made = cls(model.eval().requires_grad_(False), eyes, folder.name)
            if options.offload != "none":
                Offload.manage(made, device, options.offload)
            return made

    def check(self) -> list[str]:
        """Whether reading in parts changes its answers; what the user should know, a line each. Done once, at the
        latest with the first questions."""
        self._checked = True
        picture = Image.new("RGB", (112, 112), (200, 30, 40))
        question = Question("Is this picture red? Answer yes or no.", picture, "Answer with one word.", yes_no=True)
        with torch.inference_mode(), enough_memory(CURES), self.places.turn():
            self.device = torch.device(self.places("judge"))
            try:
                difference = self.reader.check(self.eyes.inputs(question, self.eyes.look(picture)), self.device)
            except UserError:
                raise
            except (IndexError, RuntimeError, ValueError, TypeError) as error:
                if is_out_of_memory(error):
                    raise
                raise UserError(f"the judge {self.name} cannot read a picture and a question "
                                f"({' '.join(str(error).split())[:200]}); expected a model, a tokenizer and a "
                                "preprocessor that belong together; try to download the model again") from error
        if self.reader.shares:
            return []
        why = f"differ by {difference:.2g} of their spread" if difference < inf else "cannot be had"
        return [f"the judge {self.name} reads every question from its beginning: read in parts, its numbers {why}"]

    def close(self) -> None:
        self.reader.forget()

    @torch.inference_mode()
    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """As `Chat.ask`. Each picture is encoded once, whatever the number of questions about it; what the model is
        told before is read once for all of them, and kept."""
        if not self._checked:
            self.check()
        groups: dict[tuple, list[int]] = {}
        for k, question in enumerate(questions):
            key = ("text", k) if question.picture is None else (id(question.picture), question.system)
            groups.setdefault(key, []).append(k)
        answers: list[Answer | None] = [None] * len(questions)
        try:
            with enough_memory(CURES), self.places.turn():
                for places in groups.values():
                    for k, answer in zip(places, self._ask([questions[k] for k in places])):
                        answers[k] = answer
        except BaseException as error:
            error.answers = answers  # what had come by then, see `Asker`
            raise
        return answers

    def _ask(self, questions: list[Question]):
        """The answers to questions about one picture, one after another."""
        picture = questions[0].picture
        try:
            sight = None if picture is None else self.eyes.look(picture)
            inputs = [self.eyes.inputs(question, sight) for question in questions]
        except UserError:
            raise
        except ValueError as error:
            # Such as one that is 300 times as wide as high: no judge of this kind sees it.
            yield from [Answer(error=f"the picture cannot be looked at: {error}")] * len(questions)
            return
        longest = max(one.ids.shape[1] + question.max_tokens for one, question in zip(inputs, questions))
        if longest > self.room:
            raise UserError(f"the picture and its question take {longest:,} tokens, the context of {self.name!r} has "
                            f"{self.room:,}; try a smaller side")
        pixels = 0 if picture is None else picture.width * picture.height
        self.device = device = torch.device(self.places("judge", pixels))
        began = time.perf_counter()
        for question, one, (logits, read) in zip(questions, inputs, self.reader.logits(inputs, device)):
            if self.on_wait is not None:
                self.on_wait()
            if not question.yes_no:
                answer = self._rest(question, one, logits, read(), device)
            else:
                answer = Answer(error=ALL_THOUGHT) if one.thinks else self._first(logits)
            now = time.perf_counter()
            yield replace(answer, tokens_in=one.ids.shape[1], seconds=now - began)
            began = now

    def _first(self, logits: Tensor) -> Answer:
        """The first token's probabilities, and the word that it would be."""
        odds = logits.softmax(-1).cpu()
        text = self.eyes.tokenizer.decode([int(odds.argmax())], skip_special_tokens=True)
        return Answer(text.strip(), float(odds[self.yes].sum()), float(odds[self.no].sum()), tokens_out=1)

    def _rest(self, question: Question, inputs: Inputs, logits: Tensor, read: Read, device: torch.device) -> Answer:
        """The likeliest token, and so on until it ends, or may not be longer."""
        at = int(positions(self.model, inputs.ids, {**inputs.along, **inputs.vision}).max()) + 1
        said: list[int] = []
        seen = torch.unique(inputs.ids[0]).to(logits.device)
        while True:
            token = int(_penalised(logits, seen, self.penalty).argmax())
            if token in self.ends:
                break
            said.append(token)
            if len(said) == question.max_tokens:
                break
            if self.on_wait is not None:
                self.on_wait()
            seen = torch.unique(torch.cat([seen, seen.new_tensor([token])]))
            logits = self.reader.next(read, token, at, device)
            at += 1
        cut = len(said) == question.max_tokens
        text = self._text(said, inputs.thinks)
        if not text:
            thought = cut or inputs.thinks or self.eyes.tokenizer.decode(said, skip_special_tokens=True).strip()
            return Answer(error=ALL_THOUGHT if thought else "it answered nothing", cut=cut, tokens_out=len(said))
        return Answer(text, cut=cut, tokens_out=len(said))

    def _text(self, said: list[int], thinks: bool) -> str:
        """What stands behind its thoughts; '' where they have no end. `thinks`: the first of them is open."""
        # Some tokenizers have the marks around thoughts among those that no text shows.
        opened = thinks or any(token in self.thoughts for token in said)
        behind = next((k for k in range(len(said), 0, -1) if said[k - 1] in self.ended), 0)
        text = self.eyes.tokenizer.decode(said[behind:], skip_special_tokens=True)
        if opened and not behind and "</think" not in text.lower():
            return ""
        return without_thoughts(text)


def check_folder(folder: Path) -> None:
    """UserError, naming the file, unless it holds a model of a kind that can be loaded, whole. Reads no weights."""
    config = read_json(folder / "config.json", "expected the folder of a language model that sees pictures, as on the "
                       "hub: config.json, safetensors, tokenizer and preprocessor_config.json")
    kind = config.get("model_type")
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as known

    if kind not in known:
        raise UserError(f"{folder / 'config.json'}: a model of type {kind!r} is none that the installed transformers "
                        "loads as one that reads pictures and answers; expected Qwen2.5-VL, Qwen3-VL, SmolVLM, LLaVA "
                        "or the like; try a newer transformers, or, for one with code of its own such as "
                        "NVILA-Lite-2B-Verifier, a server: reflect_core/judges/README.md")
    check_weights(folder)
    # transformers 5 writes the second in place of the first.
    eyes = [name for name in ("preprocessor_config.json", "processor_config.json") if (folder / name).is_file()]
    for name in (*eyes[:1], "tokenizer_config.json") if eyes else ("preprocessor_config.json",):
        read_json(folder / name, "expected it beside the weights; try to download the model again")


def _ids_of(tokenizer: Any, word: str) -> list[int]:
    """Every token that is a spelling of the word, each once."""
    return sorted({id for token, id in tokenizer.get_vocab().items() if spelling(token) == word})


def _marks_of(tokenizer: Any, begin: str) -> set[int]:
    """Tokens of the tokenizer's own that begin so, such as those around thoughts."""
    return {id for id, token in tokenizer.added_tokens_decoder.items() if token.content.lower().startswith(begin)}


def _ends(model: nn.Module, tokenizer: Any) -> set[int]:
    ends = getattr(model.generation_config, "eos_token_id", None)
    ends = ends if isinstance(ends, (list, tuple)) else [ends]
    return {end for end in (*ends, tokenizer.eos_token_id) if end is not None}


def _penalised(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Tokens that were there already made less likely, as transformers' RepetitionPenaltyLogitsProcessor does it: the
    released judges' own settings have one (Qwen2.5-VL 1.05)."""
    if penalty == 1.0:
        return logits
    chosen = logits[seen]
    return logits.index_copy(0, seen, torch.where(chosen < 0, chosen * penalty, chosen / penalty))
