"""The trainer as tests call it: the tasks at a size of seconds, the command line, real processes to kill."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import torch
import yaml
from command import Result
from safetensors.torch import load_file, save_file

from reflect_core.shapes.scene import BACKGROUND
from trainer.train import main

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "TRANSFORMERS_VERBOSITY": "error"}

_RUN = {"batch": 4, "steps": 6, "warmup": 2, "precision": "fp32", "save_every": 2, "sample_every": 3, "log_every": 2}


def tiny_configs(folder: Path) -> dict[str, dict]:
    """Configs of a whole chain whose runs lie in `folder`, by task."""
    tuning = {**_RUN, "seed": 16, "optimizer": "muon", "data": {"sample_prompts": 2, "sources": [
        {"kind": "corrupted", "count": 16, "tries": 4}]}}
    tuned = {"base": str(folder / "sana_base" / "result"), "vision": str(folder / "sana_vision" / "result"),
             "text_length": 48, "edit_weight": 3}
    base, text = str(folder / "base" / "result"), {"text_length": 24}
    sana_text = str(folder / "sana_text" / "result")
    return {
        "vae": {**_RUN, "seed": 1, "model": {"channels": [8, 8, 8]}, "data": {"pictures": 32}},
        "text": {**_RUN, "seed": 6, "model": {**text, "width": 32, "layers": 1}, "data": {"sentences": 32}},
        "base": {**_RUN, "seed": 2, "optimizer": "muon", "data": {"bank": 24, "sample_prompts": 1}, "model": {
            "vae": str(folder / "vae" / "result"), "text": str(folder / "text" / "result"), **text,
            "heads": 2, "head_dim": 16, "single_blocks": 1, "distil": 0.5}},
        "harvest": {"seed": 3, "batch": 4, "steps": 3, "precision": "fp32", "log_every": 1,
                    "model": {"base": str(folder / "blank"), **text, "sample_steps": 2}},
        "corrector": {**_RUN, "seed": 4, "optimizer": "muon",
                      "model": {"base": base, **text, "rank": 4, "sample_steps": 2},
                      "data": {"sample_prompts": 2, "sources": [
                          {"kind": "corrupted", "count": 12},
                          {"kind": "folder", "path": str(folder / "harvest"), "repeat": 2}]}},
        "sana_vae": {**_RUN, "seed": 11, "data": {"pictures": 32}, "model": {
            "channels": [8, 8, 16, 16], "layers_per_block": [0, 1, 1, 1], "latent_channels": 4}},
        "sana_text": {**_RUN, "seed": 12, "data": {"sentences": 32}, "model": {
            "text_length": 48, "width": 32, "layers": 1}},
        "sana_vision": {**_RUN, "seed": 13, "optimizer": "muon", "data": {"pictures": 16}, "model": {
            "text": sana_text, "text_length": 48, "patch": 8, "width": 32, "layers": 1}},
        "sana_base": {**_RUN, "seed": 14, "optimizer": "muon", "data": {"bank": 24, "sample_prompts": 1}, "model": {
            "vae": str(folder / "sana_vae" / "result"), "text": sana_text, "text_length": 48, "heads": 4,
            "head_dim": 8, "cross_heads": 2, "blocks": 1, "sample_steps": 2}},
        "reflect_context": {**tuning, "model": tuned},
        "reflect": {**tuning, "model": {**tuned, "mend": 0.5, "plain": 0.2, "partial": 0.4, "guide": 0.5,
                                        "guide_steps": 3, "sample_steps": 2}},
        "bundle": {"model": {"base": base, "lora": str(folder / "corrector" / "result")},
                   # The tests run in trees with changes too.
                   "data": {"defaults": {"width": 64, "height": 64, "steps": 2, "guidance": 2.0},
                            "options": {"max_batch": 4}, "allow_dirty": True}},
    }


def blank_model(model: Path, folder: Path) -> None:
    """A copy of a model that draws the empty background, whatever it is asked: the harvest can add what is missing,
    on any machine. What an untrained one draws differs between processors and may be nothing but blots."""
    shutil.copytree(model, folder)
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["decoder.conv_out.weight"].zero_()
    weights["decoder.conv_out.bias"][:] = torch.tensor(BACKGROUND) / 127.5 - 1
    save_file(weights, file, {"format": "pt"})


def write_config(folder: Path, task: str, **changes) -> Path:
    """The config of a task as a YAML file, whose run is `folder / task`."""
    config = {"name": f"tiny-{task}", "task": task, "out": str(folder / task), **tiny_configs(folder)[task], **changes}
    file = folder / f"{task}.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    return file


def command(*arguments) -> list[str]:
    return [sys.executable, str(ROOT / "trainer" / "train.py"), *map(str, arguments)]


def train(*arguments, cwd=ROOT) -> subprocess.CompletedProcess:
    """`python trainer/train.py ...` in a process of its own."""
    return subprocess.run(command(*arguments), capture_output=True, text=True, env=ENVIRONMENT, cwd=cwd, timeout=300)


def inside(capsys, *arguments) -> Result:
    """The same in this process: torch is there already."""
    capsys.readouterr()
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return Result(code, captured.out, captured.err)


def run_main(arguments: list[str], output: str) -> None:
    """What a forked process does: the command line, its output in a file."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.exit(main(arguments))


def start(*arguments, output: Path):
    """The command line in a new process that has torch and the trainer loaded: made in milliseconds, and can be
    killed like any other."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tiny_training", "trainer.loop", "trainer.tasks.vae", "trainer.tasks.text",
                                    "trainer.tasks.base", "trainer.tasks.harvest", "trainer.tasks.corrector"])
    process = context.Process(target=run_main, args=([str(a) for a in arguments], str(output)))
    process.start()
    return process


def tensors(*files: Path) -> dict[str, bytes]:
    """Every tensor of safetensors files, as bytes."""
    return {f"{file.name}/{key}": value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            for file in files for key, value in load_file(file).items()}
