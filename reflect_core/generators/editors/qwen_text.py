"""What Qwen2.5-VL makes of an instruction and the picture it is about: the text side of Qwen-Image-Edit.

The templates, and how many of their first tokens are cut off again, are diffusers'. Each text is encoded alone, so
there is no padding, and kept.

What differs from diffusers' pipelines up to 0.42: with transformers 5 the language model places the picture's tokens
in rows and columns only if it is told which tokens they are (`mm_token_type_ids`), and the pipelines do not tell it
(diffusers issue 14194). It is told here, so that instructions are understood as in training.
"""

from __future__ import annotations

import hashlib
import inspect
import warnings
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...types import Picture
from ..kept import Kept
from ..places import Places
from .editor import fitted
from .qwen_folder import PLUS

IMAGE = "<|image_pad|>"
"""Stands once in a text for each picture, and then as often as the picture has tokens."""
AREA = 1024 * 1024
"""Pixels to which the first release's flawed picture is brought for the text encoder ..."""
PLUS_AREA = 384 * 384
"""... and that of 2509 and 2511."""
PLUS_PICTURE = f"Picture 1: <|vision_start|>{IMAGE}<|vision_end|>"
"""What stands before the instruction there."""


class QwenTexts:
    """States (L, D) of a text, with or without a picture, on the CPU, wherever the encoder is."""

    def __init__(self, pipeline: str, tokenizer: Any, image_processor: Any, text_encoder: Any, most: int, keep: int,
                 places: Places) -> None:
        """`pipeline`: the class in the model's index; `most`: tokens of a text without a picture."""
        self.tokenizer, self.image_processor, self.text_encoder = tokenizer, image_processor, text_encoder
        self.plus, self.most, self.places = pipeline == PLUS, most, places
        self.with_picture, self.plain = _template(pipeline), _template("QwenImagePipeline")
        self.kept = Kept(keep)
        self.warned: set[str] = set()

    def states(self, text: str, picture: Picture | None = None) -> tuple[Tensor, bool]:
        """The states of a text about an RGB picture, and whether they had to be made."""
        seen = None if picture is None else (picture.size, hashlib.sha256(picture.tobytes()).digest())
        return self.kept.get((text, seen), lambda: self._states(text, picture))

    def _states(self, text: str, picture: Picture | None) -> Tensor:
        text = text.replace("<|", "< |")  # a text from outside has no word of the model's own signs
        if picture is None:
            template, first = self.plain
            return self._encode({"input_ids": self._ids(template.format(text))}, 0)[first:][:self._room(text)]
        template, first = self.with_picture
        size = fitted(picture.size, PLUS_AREA if self.plus else AREA, 32)
        shown = picture.resize(size, Image.Resampling.LANCZOS)  # as diffusers' image processor does
        given = self.image_processor(images=[shown], return_tensors="pt")
        grid = given["image_grid_thw"]
        tokens = int(grid[0].prod()) // self.image_processor.merge_size**2
        whole = template.format((PLUS_PICTURE if self.plus else "") + text)
        ids = self._ids(whole.replace(IMAGE, IMAGE * tokens))
        inputs = {"input_ids": ids, "pixel_values": given["pixel_values"], "image_grid_thw": grid}
        return self._encode(inputs | self._told_apart(ids), size[0] * size[1])[first:]

    def _ids(self, text: str) -> Tensor:
        return self.tokenizer([text], return_tensors="pt", verbose=False).input_ids

    def _told_apart(self, ids: Tensor) -> dict[str, Tensor]:
        """Which tokens are the picture's, for a language model that asks."""
        if "mm_token_type_ids" not in inspect.signature(self.text_encoder.forward).parameters:
            return {}
        return {"mm_token_type_ids": (ids == self.tokenizer.convert_tokens_to_ids(IMAGE)).int()}

    def _encode(self, inputs: dict[str, Tensor], pixels: int) -> Tensor:
        device = self.places("text_encoder", pixels)
        inputs = {name: value.to(device) for name, value in inputs.items()}
        # One row of next words is made in any case; more of them take gigabytes, and nobody reads them.
        made = self.text_encoder(**inputs, attention_mask=torch.ones_like(inputs["input_ids"]), logits_to_keep=1,
                                 output_hidden_states=True, use_cache=False)
        return made.hidden_states[-1][0].to("cpu", self.text_encoder.dtype)

    def _room(self, text: str) -> int:
        """Warns about a plain text that is cut."""
        if len(self._ids(text)[0]) > self.most and text not in self.warned:
            self.warned.add(text)
            warnings.warn(f"Qwen-Image sees {self.most} tokens of {text[:60]!r}; it does not see the end; try a "
                          "shorter prompt", stacklevel=2)
        return self.most


def _template(pipeline: str) -> tuple[str, int]:
    """The text around a prompt, and the tokens of its beginning that are not kept."""
    import diffusers

    kind = getattr(diffusers, pipeline)
    names = [name for name in inspect.signature(kind.__init__).parameters if name != "self"]
    empty = kind(**dict.fromkeys(names))
    return empty.prompt_template_encode, empty.prompt_template_encode_start_idx
