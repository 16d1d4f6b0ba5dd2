"""ReflectionFlow's Image-Verifier (arXiv 2504.16080): a Qwen2.5-VL with a linear head as a reward model.

The model reads the picture, then words that ask for a rating of it with the prompt in them, and at their end an added
token, `<|VQ_reward|>`; the reward is the bias-free head's number at that token. raw: that number; where the
checkpoint's model_config.json has VQ_mean and VQ_std, normalised = (raw - mean) / deviation, otherwise the raw number
itself. The score in [0, 1] is sigmoid(normalised). `verifier_folder.py` says what the checkpoint's folder must hold.

The words the published checkpoint was trained with are not here: they come without a licence. Put them into
`prompt_template.txt` beside model_config.json, with `{prompt}` where the prompt goes, or hand them over as `template`.
The default, `TEMPLATE`, asks for the same in our own words, which moves the numbers; the verdicts say which was used.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...generators.loading import quiet, wrapped
from ...generators.places import Places
from ...types import Picture, UserError, Verdict
from .chat import Patches, chat_template, inputs, one_turn
from .room import enough_room
from .verdicts import checked_threshold, sigmoid, verdict
from .verifier_folder import find_checkpoint, load

NAME, PART, TOKEN = "Image-Verifier", "verifier", "<|VQ_reward|>"
TEMPLATE_FILE = "prompt_template.txt"
_PLACE = re.compile(r"\{(?:text_)?prompt\}")
TEMPLATE = """An image model drew this picture for the text below. Rate it as a whole, from 0 (poor) to 10 (flawless).
Weigh two things:
1. How good it looks: is what it shows plausible, is it sharp, does it have fine detail, is it pleasing?
2. How well it does what the text asks for: the subject, the surroundings, the style.
Text: {prompt}
Rating: """ + TOKEN


class ImageVerifier:
    """See the module; `from_folder` makes one.

    Args:
        model: a `Qwen2_5_VLModel`; head: linear to one number, without a bias, in fp32.
        template: a text with `{prompt}` in it (`{text_prompt}` will do); if it has no reward token, one is put at its
            end.
        normalisation: (mean, deviation) of raw rewards, or None.
        batch: pictures of one size that are judged at once.
        about: which weights these are; in each verdict's details.
    """

    def __init__(self, model: nn.Module, head: nn.Linear, tokenizer: Any, patches: Patches, chat: str,
                 template: str = TEMPLATE, threshold: float | None = None, batch: int = 4,
                 normalisation: tuple[float, float] | None = None, about: str = "") -> None:
        if batch < 1:
            raise UserError(f"batch is {batch}; expected 1 or more")
        self.model, self.head, self.tokenizer, self.patches, self.chat = model, head, tokenizer, patches, chat
        self.template, self.threshold, self.batch = _checked_template(template), checked_threshold(threshold), batch
        self.normalisation, self.about = normalisation, about
        self.parts = {PART: model}
        self.places = Places(self.parts)
        if tokenizer.convert_tokens_to_ids(TOKEN) in (None, tokenizer.unk_token_id):
            tokenizer.add_tokens([TOKEN], special_tokens=True)
        self.token = tokenizer.convert_tokens_to_ids(TOKEN)
        rows = model.get_input_embeddings().weight.shape[0]
        if self.token >= rows:
            raise UserError(f"the reward token is number {self.token}, and the checkpoint's embedding has {rows} rows; "
                            "expected a row for it; try the base that its model_config.json names")
        self._types = "mm_token_type_ids" in inspect.signature(model.forward).parameters

    @classmethod
    def from_folder(cls, folder: str | Path, dtype: torch.dtype = torch.bfloat16, device: str | torch.device = "cpu",
                    threshold: float | None = None, *, base: str | Path | None = None, step: int | None = None,
                    template: str | None = None, max_pixels: int | None = None, batch: int = 4) -> ImageVerifier:
        """Load a checkpoint in the published layout.

        Args:
            base: the folder of the Qwen2.5-VL that it was tuned from; None if the checkpoint's folder is one itself.
            step: which checkpoint-<step>; None (the default) takes the highest, and `about` says which that was.
            template: None reads prompt_template.txt beside model_config.json, or takes `TEMPLATE` if there is none.
            max_pixels: None (the default): what the checkpoint was trained with.

        Raises UserError, naming the file, for what is missing, a pickle, or of another model.
        """
        found = find_checkpoint(folder, step)
        base = Path(base) if base is not None else found.folder
        if not (base / "config.json").is_file():
            named = found.section("model_config").get("model_name_or_path", "a Qwen2.5-VL-Instruct")
            raise UserError(f"{base}: has no config.json; expected the folder of the model that the checkpoint was "
                            f"tuned from, {named}; try base=FOLDER")
        patches = Patches.from_folder(base, found.most_pixels if max_pixels is None else max_pixels)
        tokenizer = _tokenizer(found.folder, base)
        words, of = _template(template, [found.folder, Path(folder)])
        with enough_room(f"the {NAME} in {found.folder}", "dtype bfloat16, or the device cpu"):
            model, head = load(found, base, dtype)
            model = model.to(device)
        return cls(model, head, tokenizer, patches, chat_template(tokenizer, base), words, threshold, batch,
                   found.normalisation, f"{found.about}; template: {of}")

    def judge(self, prompt: str, pictures: Sequence[Picture]) -> list[Verdict]:
        verdicts = []
        with self.places.turn():
            raws = self.raw(prompt, pictures)
        for raw in raws:
            mean, deviation = self.normalisation or (0.0, 1.0)
            normalised = (raw - mean) / deviation
            one = verdict(NAME, raw, sigmoid(normalised), self.threshold)
            one.details.update(normalised=normalised, about=self.about)
            verdicts.append(one)
        return verdicts

    def raw(self, prompt: str, pictures: Sequence[Picture]) -> list[float]:
        """The head's number for each picture."""
        text = one_turn(self.tokenizer, self.chat, self.words(prompt))
        shown = [self.patches(picture) for picture in pictures]
        values: dict[int, float] = {}
        # Pictures of one size make texts of one length: nothing is ever padded.
        for grid in dict.fromkeys(grid for _, grid in shown):
            same = [index for index, (_, other) in enumerate(shown) if other == grid]
            for start in range(0, len(same), self.batch):
                some = same[start : start + self.batch]
                values |= zip(some, self._rewards(text, [shown[index] for index in some]))
        return [values[index] for index in range(len(shown))]

    def words(self, prompt: str) -> str:
        """What the model reads beside a picture. A prompt's own marks of tokens, such as `<|im_end|>`, are taken apart:
        they would end the turn, or be taken for the picture or the reward."""
        return _PLACE.sub(lambda _: prompt.replace("<|", "< |"), self.template)

    @torch.no_grad()
    def _rewards(self, text: str, shown: Sequence[tuple[torch.Tensor, tuple[int, int, int]]]) -> list[float]:
        grid = shown[0][1]
        given = dict(inputs(self.tokenizer, text, self.patches.tokens(grid), shown, self.model.config.image_token_id))
        if not self._types:
            given.pop("mm_token_type_ids")
        where = self.places(PART, len(shown) * grid[1] * grid[2] * self.patches.patch**2)
        at = given["input_ids"][0] == self.token
        if int(at.sum()) != 1:
            raise UserError(f"the template has {int(at.sum())} reward tokens; expected one {TOKEN}")
        given = {name: tensor.to(where) for name, tensor in given.items()}
        given["pixel_values"] = given["pixel_values"].to(self.model.dtype)
        with enough_room(f"{len(shown)} pictures in the {NAME}",
                         "a smaller batch, a smaller max_pixels, or the device cpu"):
            states = self.model(**given, use_cache=False).last_hidden_state
        return self.head(states[:, at.to(states.device)][:, 0].to("cpu", torch.float32))[:, 0].tolist()


def _template(template: str | None, folders: Sequence[Path]) -> tuple[str, str]:
    """The template, and where it is from."""
    if template is not None:
        return template, "given"
    for file in (folder / TEMPLATE_FILE for folder in folders):
        if file.is_file():
            try:
                return file.read_text(encoding="utf-8").strip(), TEMPLATE_FILE
            except (OSError, ValueError) as error:
                raise UserError(f"{file}: cannot be read ({error}); expected text in UTF-8") from error
    return TEMPLATE, "our own words"


def _checked_template(template: str) -> str:
    """With one reward token in it, at its end if it had none. UserError for one without a place for the prompt."""
    if not _PLACE.search(template):
        raise UserError(f"the template {template[:60]!r} has no {{prompt}} in it; expected one, where the prompt goes")
    return template if TOKEN in template else f"{template.rstrip()} {TOKEN}"


def _tokenizer(checkpoint: Path, base: Path):
    """The checkpoint's own tokenizer, which may lie in its `tokenizer/`, or the base's."""
    from transformers import AutoTokenizer

    places = [place for place in (checkpoint / "tokenizer", checkpoint, base)
              if any((place / name).is_file() for name in ("tokenizer.json", "vocab.json"))]
    if not places:
        raise UserError(f"{base}: has no tokenizer; expected tokenizer.json, or vocab.json with merges.txt; try to "
                        "download the base model again")
    with quiet():
        return wrapped(places[0], lambda: AutoTokenizer.from_pretrained(places[0], local_files_only=True))
