"""What Qwen2.5-VL is shown: one picture as patches, and a chat of one turn as tokens.

Pictures by Pillow and numpy alone, as in `pixels.py` and for the same reason; transformers' processor for this model
needs torchvision besides, for videos.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...generators.rgb import as_rgb
from ...model_files import read_json
from ...types import Picture, UserError
from .pixels import CLIP_MEAN, CLIP_STD, FILE, normalised

IMAGE = "<|image_pad|>"
LEAST_PIXELS = 4 * 28 * 28
MOST_RATIO = 200


@dataclass(frozen=True)
class Patches:
    """How a picture becomes patches; the defaults are Qwen2.5-VL's."""

    most_pixels: int
    patch: int = 14
    merge: int = 2
    """Patches along a side that become one token."""
    frames: int = 2
    """A still picture is shown as so many equal frames."""
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    @classmethod
    def from_folder(cls, folder: Path, most_pixels: int) -> Patches:
        """By a base's preprocessor_config.json, but for the size. UserError for one that is not of this family."""
        config = read_json(folder / FILE, "it says how pictures are cut into patches; try to download it beside the "
                                          "weights")
        try:
            values = [int(config.get(name, default)) for name, default in
                      (("patch_size", 14), ("merge_size", 2), ("temporal_patch_size", 2))]
            colours = [tuple(map(float, config.get(name, default))) for name, default in
                       (("image_mean", CLIP_MEAN), ("image_std", CLIP_STD))]
        except (TypeError, ValueError) as error:
            raise UserError(f"{folder / FILE}: {error}; expected the settings of Qwen2.5-VL's image processor; try the "
                            "file of the model's own repository") from error
        return cls(most_pixels, *values, *colours)

    def size(self, picture: Picture) -> tuple[int, int]:
        """(height, width) that a picture is resized to: whole tokens, about its own shape, and few enough pixels."""
        unit, (width, height) = self.patch * self.merge, picture.size
        if max(width, height) > MOST_RATIO * min(width, height):
            raise UserError(f"a picture is {width}x{height}; expected one that is at most {MOST_RATIO} times as long "
                            "as wide")
        sides = [round(side / unit) * unit for side in (height, width)]
        if sides[0] * sides[1] > self.most_pixels:
            factor = math.sqrt(height * width / self.most_pixels)
            sides = [max(unit, math.floor(side / factor / unit) * unit) for side in (height, width)]
        elif sides[0] * sides[1] < LEAST_PIXELS:
            factor = math.sqrt(LEAST_PIXELS / (height * width))
            sides = [math.ceil(side * factor / unit) * unit for side in (height, width)]
        return sides[0], sides[1]

    def __call__(self, picture: Picture) -> tuple[Tensor, tuple[int, int, int]]:
        """A picture to fp32 patches (N, 3 * frames * patch * patch), and their grid (1, rows, columns)."""
        picture = as_rgb(picture)
        height, width = self.size(picture)
        pixels = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))
        cut = normalised(pixels, 1 / 255, self.mean, self.std)
        rows, columns, m, p = height // self.patch, width // self.patch, self.merge, self.patch
        # Patches of one token lie together: (token row, token column, row in it, column in it, channel, y, x).
        cut = cut.reshape(3, rows // m, m, p, columns // m, m, p).transpose(1, 4, 2, 5, 0, 3, 6)
        cut = np.repeat(cut[:, :, :, :, :, None], self.frames, axis=5)
        return torch.from_numpy(cut.reshape(rows * columns, -1)), (1, rows, columns)

    def tokens(self, grid: tuple[int, int, int]) -> int:
        return grid[0] * grid[1] * grid[2] // self.merge**2


def chat_template(tokenizer: Any, base: Path) -> str:
    """The base's chat template: the tokenizer's own, or that of `chat_template.json`."""
    if tokenizer.chat_template is not None:
        return tokenizer.chat_template
    template = read_json(base / "chat_template.json", "the tokenizer has no chat template, and neither has this file; "
                         "try to download the base model again").get("chat_template")
    if not isinstance(template, str):
        raise UserError(f"{base / 'chat_template.json'}: chat_template is {template!r}; expected text; try to download "
                        "the base model again")
    return template


def one_turn(tokenizer: Any, template: str, words: str) -> str:
    """A user's turn of a picture and these words, as the model reads it."""
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": words}]}]
    text = tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False, add_generation_prompt=True)
    if text.count(IMAGE) != 1:
        raise UserError(f"the chat template shows a picture as {text.count(IMAGE)} {IMAGE}; expected one; try the base "
                        "model's own template")
    return text


def inputs(tokenizer: Any, text: str, tokens: int, patches: Sequence[tuple[Tensor, tuple[int, int, int]]],
           image_token: int) -> Mapping[str, Tensor]:
    """What the model takes for one text and several pictures of one size, which have so many `tokens` each.

    `mm_token_type_ids` say which tokens are of a picture: transformers 5 finds no places in the picture without them.
    """
    ids = tokenizer(text.replace(IMAGE, IMAGE * tokens), add_special_tokens=False, return_tensors="pt").input_ids
    ids = ids.expand(len(patches), -1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": (ids == image_token).to(torch.int32),
            "pixel_values": torch.cat([one for one, _ in patches]),
            "image_grid_thw": torch.tensor([grid for _, grid in patches])}
