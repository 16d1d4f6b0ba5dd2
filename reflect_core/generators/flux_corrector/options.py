"""The corrector's switches: where the official code has a choice or a quirk, and which is the default.

ReflectionFlow, sections 1.2 (condition picture), 1.4 (attention), 1.8 (text) and 1.9 (sampler).
"""

from __future__ import annotations

from dataclasses import dataclass

from ...types import Request, UserError
from ..checking import is_number, is_whole, one_of


@dataclass(frozen=True)
class CorrectorOptions:
    """How `FluxCorrector` turns requests into model inputs. Defaults are the published corrector's."""

    text_join: str = "train"
    """How prompt and reflection meet. 'train': CLIP sees the user's original prompt, T5 sees
    `prompt [Reflexion] reflection`. 'search': both see `prompt [Reflexion]: reflection`, as in the published
    search, whose colon and joint CLIP text the model never saw in training. The default is what the weights
    were made for; a run that is to reproduce the published search sets 'search'.

    `prompt` is the refined one where a refiner has rewritten it. In training and in the official sample
    script there is no refiner, so that T5's prompt is the original there; with one, T5 is given the
    rewritten prompt under both settings, as in the published search, for else a correction would undo the
    refiner. A run without a refiner has exactly the training's texts."""
    condition_size: int = 512
    """Side in pixels of the square to which the flawed picture is resized (bicubic, no crop). In
    training code the default is 1024, but every published configuration has 512."""
    condition_offset: tuple[int, int] | None = None
    """Shift of the condition's position ids in (rows, columns) of 2 x 2 latents. None: its own width to
    the left, (0, -32) for 512, as published."""
    posterior: str = "sample"
    """'sample' draws the condition's latent from the autoencoder's posterior, as the official code does,
    here with the request's own generator, after the noise. 'mode' takes its mean."""
    condition_scale: float = 1.0
    """Strength of the attention between condition and rest; log(scale) is added to it. 1: published."""
    union_cond_attn: bool = True
    """False cuts condition and rest off from each other. True: published."""
    latent_lora: bool = False
    """True puts the LoRA on text and image tokens too, also without a condition. False: published."""
    true_cfg_scale: float = 1.0
    """Above 1, a second pass with the text "" and this scale, as in diffusers' FluxPipeline. With a
    condition the second pass keeps the picture and drops the text; that is ours. 1: off, published."""
    max_sequence_length: int = 512
    """Tokens of T5, padded without a mask. 512: published."""
    max_batch: int = 4
    """Pictures in one batch; each of 1024 pixels a side takes 0.7 GB while it is corrected. The same requests with the
    same value come out bit for bit."""
    text_cache: int = 64
    """Texts of each encoder whose states are kept."""
    condition_cache: int = 64
    """Condition pictures whose posterior is kept."""
    vae_tiling: bool = False
    """Decode pictures larger than 512 pixels tile by tile: less memory, and an approximation, see `tiling.py`."""
    compile: bool = False
    """Run the transformer's blocks through torch.compile, see `compiled.py`."""

    def __post_init__(self) -> None:
        if isinstance(self.condition_offset, list):  # from JSON
            object.__setattr__(self, "condition_offset", tuple(self.condition_offset))
        one_of("text_join", self.text_join, ("train", "search"))
        one_of("posterior", self.posterior, ("sample", "mode"))
        for name in ("condition_size", "max_sequence_length", "max_batch", "text_cache", "condition_cache"):
            value = getattr(self, name)
            if not is_whole(value) or value < 1:
                raise UserError(f"option {name} is {value!r}; expected a whole number of 1 or more")
        for name in ("union_cond_attn", "latent_lora", "vae_tiling", "compile"):
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"option {name} is {getattr(self, name)!r}; expected true or false, without quotes")
        if not is_number(self.condition_scale) or self.condition_scale <= 0:
            raise UserError(f"option condition_scale is {self.condition_scale!r}; expected a number above 0, 1 for "
                            "the published strength")
        if not is_number(self.true_cfg_scale) or self.true_cfg_scale < 1:
            raise UserError(f"option true_cfg_scale is {self.true_cfg_scale!r}; expected a number of 1 (off) or more")
        offset = self.condition_offset
        if offset is not None and not (isinstance(offset, tuple) and len(offset) == 2 and all(map(is_whole, offset))):
            raise UserError(f"option condition_offset is {offset!r}; expected two whole numbers, rows and "
                            "columns, or null")

    def texts(self, request: Request) -> tuple[str, str]:
        """(CLIP's text, T5's text) of a request. Without a reflection there is no marker either."""
        feedback = request.context[0].feedback.strip() if request.context else ""
        original = request.prompt if request.original_prompt is None else request.original_prompt
        if not request.context:
            return request.prompt, request.prompt
        if self.text_join == "search":
            both = f"{request.prompt} [Reflexion]: {feedback}" if feedback else request.prompt
            return both, both
        return original, f"{request.prompt} [Reflexion] {feedback}" if feedback else request.prompt
