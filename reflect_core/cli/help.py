"""What the settings of policies and the options of models mean, in a line each, for `reflect run --help`.

Said here and not taken from the classes: their docstrings are for programmers, and the models' classes
are behind torch, which a help text must not wait for. The tests compare the names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from textwrap import wrap

from ..search import POLICIES

PICTURES = 20
"""The number of pictures if nothing is said."""

SETTINGS = {
    "n": "pictures",
    "early_stop": "stop at the first picture that the judge accepts",
    "pool": "pictures from noise to begin with; the best of them are then corrected",
    "branches": "pictures that are followed side by side",
    "rounds": "how often each of them is drawn again",
    "reflect": "tell the corrector in words what to change",
    "refine": "rewrite the prompt before each correction",
    "parents": "what is corrected next: 'chain', each branch's best so far; 'best', the best of all; 'last', the "
               "round before, good or bad",
    "pool_in_choice": "a picture of the pool may be the answer",
    "judge_again": "judge each correction a second time, as the official script does",
    "silent": "when there is nothing to say of a picture: 'redraw' from new noise, or 'correct' without words",
    "reflect_again": "ask for new words when the same picture is corrected again",
    "patience": "give a picture up after so many worse corrections in a row; null: never (editors: 3)",
    "max_depth": "corrections in a row that a picture may have behind it; the next one then starts from the best that "
                 "has fewer; null: no bound (editors, whose edits drift: 3)",
    "repeat_parents": "with fewer pictures than branches, correct some several times",
    "pool_steps": "denoising steps of the pool; null: as --steps",
    "corrector_steps": "denoising steps of a correction; null: as --steps",
    "corrector_guidance": "guidance of a correction; null: as --guidance",
    "tries": "pictures, one after another",
    "context": "earlier pictures, with what was said of them, that a picture is drawn with at most",
    "answer": "which picture is kept if none is accepted: 'best' or 'last'",
    "keep_silent": "a picture of which there is nothing to say is shown to the model too, without words",
}
SINGULAR = {"noise_prompt": {"rounds": "how often a picture is drawn, each time from a rewritten prompt"}}
"""Where a policy means something else by the same name."""

FLUX_OPTIONS = {
    "max_batch": "pictures drawn at once (4); 1 needs the least memory",
    "encoder_device": "where the text encoders are kept; cpu spares a GPU 10 GB with FLUX.1-dev",
    "quantise": "weights of the transformer and the large text encoder in fewer bits: fp8, int8 or nf4 (bitsandbytes, "
                "on a GPU), torchao-int8, or none",
    "text_join": "how prompt and reflection become one text: 'train', as the corrector learned it, or 'search', as the "
                 "published search does",
    "condition_size": "pixels a side to which the flawed picture is brought (512)",
    "condition_offset": "where the flawed picture lies for the model, [rows, columns]; null: to the left",
    "condition_scale": "how strongly the flawed picture is looked at (1)",
    "posterior": "how the flawed picture is encoded: 'sample' or 'mode'",
    "true_cfg_scale": "classifier-free guidance on top of FLUX's own, at twice the cost; 1: off",
    "union_cond_attn": "false hides the flawed picture from the model, for experiments",
    "latent_lora": "true puts the corrector's weights on all tokens, for experiments",
    "max_sequence_length": "tokens of T5 (512)",
    "text_cache": "texts that are kept encoded (64)",
    "condition_cache": "pictures that are kept encoded (64)",
    "offload": "'component' has one part at a time on the GPU, 'layers' two blocks of it at a time, 'none' all (none); "
               "the pictures are the same",
    "vae_tiling": "true decodes large pictures tile by tile, in less memory: an approximation",
    "compile": "true compiles the transformer's blocks, for which the first picture of a size waits minutes",
}

SANA_OPTIONS = {
    "max_batch": "pictures drawn at once (4)",
    "max_context": "earlier pictures that the model is shown at most (3)",
    "image_tokens": "tokens of each of them, a square number (64)",
    "prompt_instruction": "what the text encoder reads before the prompt: 'sana', SANA's own; '' nothing; or a text",
    "feedback_prefix": "what it reads before a feedback (nothing)",
    "max_sequence_length": "tokens of a prompt or a feedback (300)",
    "mask_last": "false lets the last token of the context be seen, for experiments",
    "pad_context": "false leaves padding out of the context, for experiments",
    "no_context": "'dropped' draws a picture without pairs with the zero vectors that training had in their place",
    "see": "'words' or 'pictures' shows it nothing else of the flawed pictures, for ablations",
    "rotary_bf16": "false keeps the context's positions in full precision, for experiments",
    "text_cache": "texts that are kept encoded (64)",
    "picture_cache": "pictures that are kept encoded (64)",
    "encoder_device": "where text and picture encoder are kept; cpu spares a GPU 6 GB with SANA 1.6B",
    "quantise": "as of FLUX models",
    "prompt_cache": "prompts whose keys and values are kept for the next tries (8)",
    "offload": "'component' has one part at a time on the GPU, 'layers' two blocks of it at a time, 'none' all (none); "
               "the pictures are the same",
    "vae_tiling": "true decodes large pictures tile by tile, in less memory: an approximation",
    "compile": "true compiles the transformer's blocks, for which the first picture of a size waits minutes",
}

EDIT_OPTIONS = {
    "target": "'always' tells the editor what the whole picture should show, too; 'silent', only where there is "
              "nothing to change",
    "keep": "false does not say that everything else should stay as it is",
    "max_words": "words of an instruction (120)",
    "base": "another model for the pictures without a flawed one, by any name that --model takes, e.g. flux-corrector "
            "(of which FLUX.1-dev alone is needed); its parts as --part base:vae=PATH; 'none': not reflect.json's",
    "encoder_device": "where the text encoders are kept; cpu spares a GPU 10 GB with Kontext, 17 GB with Qwen",
    "offload": "'component' or 'layers', as of FLUX models",
    "quantise": "as of FLUX models; of the base too",
    "vae_tiling": "true works on large pictures tile by tile, in less memory: an approximation",
    "max_batch": "pictures drawn at once, of Kontext (4); Qwen draws one at a time",
    "true_cfg_scale": "of Kontext: classifier-free guidance on top of its own, at twice the cost; 1: off",
    "negative_prompt": "of Qwen: what its guidance leads away from (a space)",
    "max_sequence_length": "tokens of T5, or of a prompt without a picture (512)",
    "text_cache": "texts that are kept encoded (64)",
    "picture_cache": "flawed pictures that are kept encoded (16)",
}


JUDGE_OPTIONS = {
    "ask": "how it judges: 'checks' (default), the prompt is taken apart once into yes-or-no questions and each "
           "picture asked all; 'match', one question; 'rubric', marks out of ten; 'released', as Reflect-DiT's "
           "released judge",
    "threshold": "the score from which a picture is accepted (0.5 for each check and for 'match', 0.9 for 'rubric')",
    "checks": "your own questions, as a JSON list, in place of those that the model makes",
    "mean": "of the checks: 'arithmetic' or 'geometric'",
    "tag": "for 'rubric': single_object, two_object, counting, colors, position, color_attr or general",
    "wording": "for 'released': the question, with {prompt} in it",
    "guard": "for 'released': false keeps the official rule, under which a feedback may be empty",
    "reflect": "how it says what is wrong: 'edits' (of FLUX's default), 'sentence' (of SANA's), 'tuned', as "
               "ReflectionFlow's Reflection-Generator, 'released' or 'none'",
    "edits": "for 'edits': how many at most (3)",
    "reflect_wording": "for 'tuned': the question, with {prompt} in it",
    "scripts": "what the model reads: a reflection in letters that are not Latin is handed on with 'any' (SANA, "
               "Qwen-Image-Edit), and with 'latin' (FLUX) left out and noted",
    "refine": "false: it rewrites no prompts",
}

SERVER_OPTIONS = {
    "url": "the server's address",
    "model": "the server's name for the model; not needed where it has only one",
    "concurrency": "questions that are under way at once (8)",
    "timeout": "seconds for one answer (120)",
    "attempts": "how often to try, with growing pauses (4)",
    "pause": "seconds before the second time (0.5)",
    "side": "pixels of a picture's longer side at most (1024)",
    "picture_format": "'jpeg' or 'png'",
    "temperature": "0: the likeliest words",
    "seed": "for the server, where words are drawn",
    "thinking": "tokens on top of each answer, for a model that thinks before it (0)",
}

LOCAL_OPTIONS = {
    "folder": "where it lies",
    "device": "cpu, cuda, ... (default: cuda where there is one)",
    "dtype": "float32, bfloat16 or float16 (default: float32 on the cpu, else bfloat16)",
    "side": "pixels of a picture's longer side at most (1024)",
    "quantise": "its weights in fewer bits, as of FLUX models: fp8, int8, nf4 or torchao-int8 (none)",
    "offload": "'component' has it on the GPU only while it answers, 'layers' two of its blocks at a time (none)",
}

REWARD_OPTIONS = {
    "folder": "where its weights are, as on the hub",
    "threshold": "the score from which a picture is accepted (none: nothing is)",
    "device": "cpu, cuda, ...",
    "dtype": "float32, bfloat16 or float16",
    "offload": "'component' has it on the GPU only while it judges, 'layers' two of its blocks at a time (none)",
    "head": "of aesthetic: the head's safetensors file",
    "base": "of image-verifier: the Qwen2.5-VL that it was tuned from",
    "members": "of an ensemble, as JSON: [{\"judge\": WHO, \"options\": {...}, \"weight\": 2}, ...]",
    "mode": "of an ensemble: 'mean' of scores, or of 'rank's",
    "MEMBER.NAME": "of an ensemble: an option of one member, such as server-2.url",
}


def judge_help() -> str:
    return "\n".join(["options of language models, for --judge-option, --reflector-option and --refiner-option:",
                      *_list(JUDGE_OPTIONS), "and of those behind a server (its key is read from the environment: "
                      "OPENAI_API_KEY", "for OpenAI, REFLECT_KEY_ and the server's name for others, and in no record):",
                      *_list(SERVER_OPTIONS), "and of those in a folder:", *_list(LOCAL_OPTIONS),
                      "options of reward models and ensembles:", *_list(REWARD_OPTIONS)])


def settings_help() -> str:
    """All settings of all policies with their defaults."""
    lines = [f"settings of the policies, for --set (with their values for {PICTURES} pictures):"]
    for name, policy in POLICIES.items():
        lines.append(f"  {name}")
        values = policy.for_budget(PICTURES)
        said = {**SETTINGS, **SINGULAR.get(name, {})}
        lines += _list({f"{f.name}={_value(getattr(values, f.name))}": said[f.name] for f in fields(policy)})
    return "\n".join(lines)


def options_help() -> str:
    return "\n".join(["options of FLUX models, for --option (with what holds if reflect.json says nothing else):",
                      *_list(FLUX_OPTIONS), "and of SANA models with Reflect-DiT's weights:", *_list(SANA_OPTIONS),
                      "and of editors, FLUX.1 Kontext and Qwen-Image-Edit:", *_list(EDIT_OPTIONS)])


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _list(said: Mapping[str, str], column: int = 26, width: int = 100) -> list[str]:
    lines = []
    for name, words in said.items():
        first, *others = wrap(words, width - column)
        lines.append(f"    {name:{column - 4}}{first}" if len(name) < column - 4 else f"    {name}  {first}")
        lines += [" " * column + line for line in others]
    return lines
