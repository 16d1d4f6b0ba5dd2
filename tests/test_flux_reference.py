"""The corrector's whole path against one written by hand from diffusers' own parts, and FLUX's other members.

Here nothing of the pipeline is used but its forward, which the golden vectors check: the condition's tokens
and ids, the texts, the noise and the sampler are made with diffusers only (ReflectionFlow, sections 1.2, 1.3,
1.8 and 1.9).
"""

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from tiny_flux import CONDITION_SIZE, TEXT_LENGTH, write_tiny_flux

from reflect_core.generators.flux_corrector.lora import ConditionLora
from reflect_core.generators.flux_corrector.pipeline import FluxCorrector
from reflect_core.generators.flux_corrector.transformer import flux_forward
from reflect_core.types import Pair, Request

SIDE, STEPS, SEED, GUIDANCE = 32, 3, 11, 2.5
ORIGINAL, REFINED, FEEDBACK = "two red circle", "a red circle below", "add one"
TEXTS = {"train": (ORIGINAL, f"{REFINED} [Reflexion] {FEEDBACK}"),
         "search": (f"{REFINED} [Reflexion]: {FEEDBACK}",) * 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_flux(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pipeline(folder):
    return quiet(folder)


def quiet(folder, **settings) -> FluxPipeline:
    made = FluxPipeline.from_pretrained(folder, local_files_only=True, use_safetensors=True, **settings)
    made.set_progress_bar_config(disable=True)
    return made


def flawed() -> Image.Image:
    return Image.fromarray(np.random.default_rng(3).integers(0, 255, (40, 24, 3), dtype=np.uint8))


def request() -> Request:
    return Request(REFINED, SEED, SIDE, SIDE, STEPS, GUIDANCE, (Pair(FEEDBACK, picture=flawed()),), ORIGINAL)


@torch.no_grad()
def by_hand(pipeline: FluxPipeline, lora: ConditionLora, text_join: str, posterior: str,
            true_cfg_scale: float = 1.0) -> torch.Tensor:
    """Final latent tokens (16, 16) of `request()`."""
    vae, generator = pipeline.vae, torch.Generator().manual_seed(SEED)
    noise = torch.randn(1, 4, 8, 8, generator=generator)
    latents = FluxPipeline._pack_latents(noise, 1, 4, 8, 8)

    square = flawed().resize((CONDITION_SIZE, CONDITION_SIZE), Image.Resampling.BICUBIC)
    distribution = vae.encode(VaeImageProcessor(vae_scale_factor=8).preprocess(square)).latent_dist
    z = distribution.sample(generator) if posterior == "sample" else distribution.mode()
    z = (z - vae.config.shift_factor) * vae.config.scaling_factor
    condition = FluxPipeline._pack_latents(z, 1, 4, 4, 4)

    image_ids = torch.tensor([[0.0, row, column] for row in range(4) for column in range(4)])
    condition_ids = torch.tensor([[0.0, 0, -2], [0, 0, -1], [0, 1, -2], [0, 1, -1]])

    def encoded(clip_text, t5_text):
        return pipeline.encode_prompt(prompt=clip_text, prompt_2=t5_text, max_sequence_length=TEXT_LENGTH)

    def velocity(at, texts):
        states, pooled, text_ids = texts
        return flux_forward(pipeline.transformer, lora, latents, states, pooled, torch.full((1,), at),
                            torch.full((1,), GUIDANCE), image_ids, text_ids, condition, condition_ids)

    told, empty = encoded(*TEXTS[text_join]), encoded("", "")
    # FLUX's shift: a line from 0.5 at 256 tokens to 1.15 at 4096, here at 16 tokens.
    shift = np.exp(0.5 + (16 - 256) * (1.15 - 0.5) / (4096 - 256))
    even = np.linspace(1.0, 1 / STEPS, STEPS)
    sigmas = [*(shift * even / (1 + (shift - 1) * even)), 0.0]
    for now, then in zip(sigmas, sigmas[1:]):
        v = velocity(now, told)
        if true_cfg_scale > 1:
            without = velocity(now, empty)
            v = without + true_cfg_scale * (v - without)
        latents = latents + (then - now) * v
    return latents[0]


@pytest.mark.parametrize("text_join", ["train", "search"])
@pytest.mark.parametrize("posterior", ["sample", "mode"])
def test_a_correction_is_what_is_written_by_hand(folder, pipeline, text_join, posterior):
    ours = FluxCorrector.from_folder(folder, text_join=text_join, posterior=posterior)
    theirs = by_hand(pipeline, ours.lora, text_join, posterior)
    assert (ours.draw_latents([request()])[0] - theirs).abs().max() < 1e-5


def test_guidance_against_no_text_keeps_the_picture(folder, pipeline):
    ours = FluxCorrector.from_folder(folder, true_cfg_scale=2.0)
    theirs = by_hand(pipeline, ours.lora, "train", "sample", true_cfg_scale=2.0)
    assert (ours.draw_latents([request()])[0] - theirs).abs().max() < 1e-5
    assert (theirs - by_hand(pipeline, ours.lora, "train", "sample")).abs().max() > 1e-3


def plain_difference(folder, dtype: torch.dtype, **settings) -> float:
    """Largest difference of a plain picture's latents from FluxPipeline's."""
    ours = FluxCorrector.from_folder(folder, dtype=dtype).draw_latents([Request(ORIGINAL, SEED, SIDE, SIDE, STEPS)])
    theirs = quiet(folder, torch_dtype=dtype)(
        ORIGINAL, width=SIDE, height=SIDE, num_inference_steps=STEPS, guidance_scale=3.5, output_type="latent",
        max_sequence_length=TEXT_LENGTH, generator=torch.Generator().manual_seed(SEED)).images
    assert ours[0].dtype == theirs.dtype == dtype
    return (ours[0].float() - theirs[0].float()).abs().max().item()


def test_schnell_is_flux_pipeline(tmp_path):
    """FLUX.1-schnell takes no guidance."""
    assert plain_difference(write_tiny_flux(tmp_path, guidance_embeds=False), torch.float32) < 1e-5


def test_bfloat16_is_flux_pipeline(folder):
    # Neighbouring values between 2 and 4 are 0.016 apart in bf16, and the two forwards round in different places.
    assert plain_difference(folder, torch.bfloat16) < 0.05
