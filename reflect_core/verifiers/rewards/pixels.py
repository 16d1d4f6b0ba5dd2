"""Pictures as CLIP and SigLIP see them, by the settings of a published `preprocessor_config.json`.

Pillow and numpy alone: transformers' image processors are of torchvision or of Pillow by version and by what is
installed (since 5.4 torchvision's by default), and the two differ in the last bits of a resized picture. A judge's
score must not depend on that. Equal to transformers' Pillow processors to the bit.
"""

from __future__ import annotations

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

FILE = "preprocessor_config.json"
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Pixels:
    """How a picture becomes numbers."""

    size: tuple[int, int] | int
    """(height, width) that it is stretched to, or the length of its shorter side."""
    crop: tuple[int, int] | None = None
    """(height, width) cut out of its middle after that."""
    resample: int = int(Image.Resampling.BICUBIC)
    scale: float = 1 / 255
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    @classmethod
    def from_folder(cls, folder: str | Path) -> Pixels:
        """Those of a model's folder. UserError for a file that is missing or of another kind of model."""
        file = Path(folder) / FILE
        config = read_json(file, "it says how pictures are resized for the model; try to download it beside the "
                                 "weights")
        try:
            return cls.from_config(config)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{file}: {str(error)[:200]!r} is not understood; expected the settings of a CLIP or "
                            "SigLIP image processor; try the file of the model's own repository") from error

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Pixels:
        """From the keys of the file; KeyError, TypeError or ValueError for what it cannot be."""
        size, crop = config["size"], None
        if isinstance(size, Mapping):
            size = int(size["shortest_edge"]) if "shortest_edge" in size else (int(size["height"]), int(size["width"]))
        elif isinstance(size, bool) or not isinstance(size, int):
            raise TypeError(f"size {size!r}")
        if config.get("do_center_crop", False):
            crop = config.get("crop_size", size)
            crop = (int(crop["height"]), int(crop["width"])) if isinstance(crop, Mapping) else (int(crop), int(crop))
        elif isinstance(size, int):
            raise ValueError(f"size {size} without a centre crop")  # pictures of different shapes make no batch
        for name in ("do_resize", "do_rescale", "do_normalize"):
            if not config.get(name, True):
                raise ValueError(f"{name} false")
        return cls(size, crop, int(config.get("resample", Image.Resampling.BICUBIC)),
                   float(config.get("rescale_factor", 1 / 255)),
                   tuple(map(float, config.get("image_mean", CLIP_MEAN))),
                   tuple(map(float, config.get("image_std", CLIP_STD))))

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of what comes out."""
        return self.crop or self.size

    def __call__(self, pictures: Sequence[Picture]) -> Tensor:
        """Pictures of any sizes and modes to fp32 pixels (B, 3, H, W) on the CPU."""
        return torch.from_numpy(np.stack([self._one(as_rgb(picture)) for picture in pictures]))

    def _one(self, picture: Picture) -> np.ndarray:
        height, width = self.size if isinstance(self.size, tuple) else _with_shorter(picture, self.size)
        picture = picture.resize((width, height), self.resample)
        if self.crop is not None:
            tall, wide = self.crop
            top, left = (height - tall) // 2, (width - wide) // 2
            # Outside of a picture that is smaller than the crop Pillow fills with black, as the processors do.
            picture = picture.crop((left, top, left + wide, top + tall))
        return normalised(np.asarray(picture), self.scale, self.mean, self.std)


def normalised(pixels: np.ndarray, scale: float, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """8-bit (H, W, 3) to fp32 (3, H, W): scaled, less the mean, by the deviation."""
    scaled = (pixels.astype(np.float64) * scale).astype(np.float32)
    return ((scaled - np.array(mean, np.float32)) / np.array(std, np.float32)).transpose(2, 0, 1)


def _with_shorter(picture: Picture, side: int) -> tuple[int, int]:
    """(height, width) of the picture with its shorter side so long."""
    short, long = sorted(picture.size)
    longer = int(side * long / short)
    return (side, longer) if picture.height <= picture.width else (longer, side)
