"""The small FLUX-family base: transformer and both text encoders, trained together from nothing.

Rectified flow on latent tokens with logit-normal times. Its text encoders must know the words of
reflections too, as T5 knows English: a share of the captions carries an instruction behind the
marker. The last part of the run distils guidance into the guidance embedding, as FLUX.1-dev has it:
there the target at guidance g is v + (g - 1)(conditional - unconditional), from the model itself.
"""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from reflect_core.generators.flux_corrector.folder import write_folder
from reflect_core.generators.flux_corrector.latents import grid_ids
from reflect_core.generators.flux_corrector.transformer import flux_forward
from reflect_core.shapes.detector import detect
from reflect_core.shapes.evaluation import evaluation_prompts
from reflect_core.shapes.prompt import WORDS, parse
from reflect_core.shapes.repair import REFLECTION_WORDS, plan
from reflect_core.shapes.sample import TASKS
from reflect_core.shapes.tokenizer import write_word_tokenizer

from ..bank import cached, encode_pictures, make_captioned
from ..config import TrainConfig
from ..grid import save_grid

CLIP_LENGTH = 77
"""FLUX always pads CLIP's text to this many tokens; only the pooled vector is used."""


def build_components(config: TrainConfig, vae: AutoencoderKL, folder: Path) -> dict:
    """All parts of a FluxPipeline, random but for the VAE; tokenizers are written to `folder`."""
    m = config.model
    heads, head_dim, text = m.get("heads", 4), m.get("head_dim", 64), m.get("text_width", 128)
    vocabulary = sorted(WORDS | set(REFLECTION_WORDS))
    clip_words = write_word_tokenizer(folder / "tokenizer", vocabulary, "clip", CLIP_LENGTH)
    t5_words = write_word_tokenizer(folder / "tokenizer_2", vocabulary, "t5", m["text_length"])
    clip = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(clip_words), hidden_size=text, intermediate_size=2 * text, projection_dim=text,
        num_hidden_layers=m.get("text_layers", 2), num_attention_heads=4, max_position_embeddings=CLIP_LENGTH,
        bos_token_id=2, eos_token_id=3, pad_token_id=0))
    t5 = T5EncoderModel(T5Config(
        vocab_size=len(t5_words), d_model=text, d_kv=text // 4, d_ff=2 * text, num_layers=m.get("text_layers", 2),
        num_heads=4, feed_forward_proj="gated-gelu", dropout_rate=0.0, pad_token_id=0, eos_token_id=1,
        relative_attention_num_buckets=32, relative_attention_max_distance=64))
    third = head_dim // 8 * 3
    transformer = FluxTransformer2DModel(
        in_channels=4 * vae.config.latent_channels, num_layers=m.get("double_blocks", 1),
        num_single_layers=m.get("single_blocks", 5), attention_head_dim=head_dim, num_attention_heads=heads,
        joint_attention_dim=text, pooled_projection_dim=text, guidance_embeds=True,
        axes_dims_rope=(head_dim - 2 * third, third, third))
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        for name, module in block.named_modules():
            if name in ("norm1.linear", "norm1_context.linear", "norm.linear"):
                torch.nn.init.zeros_(module.weight)  # adaLN-zero: every block starts as the identity
    torch.nn.init.zeros_(transformer.proj_out.weight)
    return {"transformer": transformer, "vae": vae, "text_encoder": clip, "text_encoder_2": t5,
            "tokenizer": AutoTokenizer.from_pretrained(folder / "tokenizer"),
            "tokenizer_2": AutoTokenizer.from_pretrained(folder / "tokenizer_2"),
            "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=m.get("shift", 3.0))}


class BaseTask:
    def __init__(self, config: TrainConfig) -> None:
        self.config, m = config, config.model
        out = Path(config.out)
        self.vae = AutoencoderKL.from_pretrained(m["vae"]).requires_grad_(False)
        self.parts = build_components(config, self.vae, out)
        self.trained = {k: self.parts[k] for k in ("transformer", "text_encoder", "text_encoder_2")}
        self.length, self.side = m["text_length"], m.get("side", 8)
        self.ids = grid_ids(self.side, self.side), torch.zeros(self.length, 3)
        settings = {"data": config.data, "seed": config.seed, "vae": fingerprint(self.vae)}
        self.bank = cached(out, settings, self._make_bank)
        self.empty = self._tokens([""])
        self.forward = torch.compile(self._forward, dynamic=False) if config.compile else self._forward
        self.distil_from = round(config.steps * (1 - m.get("distil", 0.25)))

    def _tokens(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """CLIP ids (B, 77) and T5 ids (B, L), padded as FluxPipeline pads them."""
        def ids(tokenizer, length):
            return tokenizer(texts, padding="max_length", max_length=length, truncation=True,
                             return_tensors="pt").input_ids
        return ids(self.parts["tokenizer"], CLIP_LENGTH), ids(self.parts["tokenizer_2"], self.length)

    def _make_bank(self) -> dict[str, Tensor]:
        pictures, texts = make_captioned(self.config.data["bank"], self.config.seed, self.config.data.get("tasks"))
        clip, t5 = self._tokens([t for three in texts for t in three])
        return {"latents": encode_pictures(self.vae, pictures).half(),
                "clip": clip.view(len(texts), 3, -1).short(), "t5": t5.view(len(texts), 3, -1).short()}

    def named_parameters(self):
        for part, module in self.trained.items():
            for name, parameter in module.named_parameters():
                yield f"{part}.{name}", parameter

    def matrices(self) -> set[str]:
        return {n for n, p in self.named_parameters()
                if p.ndim == 2 and n.startswith("transformer.") and "transformer_blocks" in n
                and "norm" not in n}

    def _encode(self, clip_ids: Tensor, t5_ids: Tensor) -> tuple[Tensor, Tensor]:
        # Only the pooled vector of CLIP is used, and its attention is causal: what stands behind the
        # last end token has no say, so the shortest common length gives the same vector.
        width = int((clip_ids != 0).sum(1).max())
        pooled = self.parts["text_encoder"](clip_ids[:, :width]).pooler_output
        return self.parts["text_encoder_2"](t5_ids).last_hidden_state, pooled

    def _forward(self, x, states, pooled, t, guidance):
        return flux_forward(self.parts["transformer"], None, x, states, pooled, t, guidance,
                            *self.ids)

    def loss(self, step: int, generator: torch.Generator) -> Tensor:
        n = self.config.batch
        pick = torch.randint(len(self.bank["latents"]), (n,), generator=generator)
        x0 = self.bank["latents"][pick].float()
        noise = torch.randn(x0.shape, generator=generator)
        t = torch.sigmoid(torch.randn(n, generator=generator))
        chance = torch.rand(n, generator=generator)
        drop, told = chance < 0.1, chance > 1 - self.config.model.get("instructed", 0.15)
        which = torch.where(told, 2, (chance * 1000).long() % 2)
        clip_ids = self.bank["clip"][pick, which].long()
        t5_ids = self.bank["t5"][pick, which].long()
        clip_ids[drop], t5_ids[drop] = self.empty[0], self.empty[1]
        guidance = torch.ones(n)
        x = torch.lerp(x0, noise, t[:, None, None])
        target = noise - x0
        with self._precision(), sdpa_kernel(SDPBackend.MATH):
            states, pooled = self._encode(clip_ids, t5_ids)
            if step >= self.distil_from:
                target, guidance = self._guided(target, x, t, states, pooled, drop, generator)
            out = self.forward(x, states, pooled, t, guidance)
        return (out.float() - target).square().mean()

    @torch.no_grad()
    def _guided(self, target, x, t, states, pooled, drop, generator):
        """Targets at random guidance for the first half of the batch; the other half stays at 1."""
        half = len(x) // 2
        guidance = torch.ones(len(x))
        guidance[:half] = 1 + 3.5 * torch.rand(half, generator=generator)
        guidance[drop] = 1.0
        empty_states, empty_pooled = self._encode(*self.empty)
        both = self.forward(
            torch.cat([x[:half]] * 2), torch.cat([states[:half], empty_states.expand(half, -1, -1)]),
            torch.cat([pooled[:half], empty_pooled.expand(half, -1)]), torch.cat([t[:half]] * 2), torch.ones(2 * half))
        with_text, without = both.float().chunk(2)
        target = target.clone()
        target[:half] += (guidance[:half, None, None] - 1) * (with_text - without)
        return target, guidance

    def _precision(self):
        return torch.autocast("cpu", torch.bfloat16) if self.config.precision == "bf16" else nullcontext()

    def pipeline(self) -> FluxPipeline:
        pipe = FluxPipeline(**self.parts)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def sample(self, folder: Path, step: int) -> dict[str, float]:
        """Draw held-out prompts of every task; the grid's rows are tasks. Rates are by the detector."""
        count = self.config.data.get("sample_prompts", 16)
        guidance = self.config.model.get("sample_guidance", 2.5) if step > self.distil_from else 1.0
        pictures, rates, blobs, seen = [], {}, 0, 0
        for task in TASKS:
            prompts = [p.prompt for p in evaluation_prompts(task, unseen=False)][:count]
            drawn = self.draw(prompts, guidance)
            found = [detect(p) for p in drawn]
            rates[task] = float(np.mean([not plan(f, parse(p)) for f, p in zip(found, prompts)]))
            blobs += sum(any(o.shape == "blob" for o in f) for f in found)
            seen += len(found)
            pictures.append(drawn)
        save_grid(folder / f"{step:07d}.png", np.concatenate(pictures), count)
        return {**rates, "overall": float(np.mean(list(rates.values()))), "malformed": blobs / seen}

    def draw(self, prompts: list[str], guidance: float, steps: int = 20) -> np.ndarray:
        generators = [torch.Generator().manual_seed(1000 + k) for k in range(len(prompts))]
        images = self.pipeline()(prompts, height=64, width=64, num_inference_steps=steps, guidance_scale=guidance,
                                 max_sequence_length=self.length, generator=generators, output_type="np").images
        return np.rint(images * 255).astype(np.uint8)

    def export(self, folder: Path, provenance: dict) -> None:
        for part in self.trained.values():
            part.to(torch.bfloat16)
        write_folder(folder, **{k: part for k, part in self.parts.items() if not k.startswith("tokenizer")})
        for name in ("tokenizer", "tokenizer_2"):
            shutil.copytree(Path(self.config.out) / name, folder / name, dirs_exist_ok=True)
        for part in self.trained.values():
            part.to(torch.float32)
        vae = Path(self.config.model["vae"]) / "provenance.json"
        provenance = {**provenance, "vae": json.loads(vae.read_text()) if vae.exists() else None}
        (folder / "provenance.json").write_text(json.dumps(provenance, indent=1) + "\n")


def fingerprint(module: torch.nn.Module) -> list[float]:
    """A few numbers that tell one set of weights from another."""
    return [float(p.double().abs().sum()) for p in list(module.parameters())[:6]]
