"""Train a part of a reflective model: `python trainer/train.py --config trainer/configs/NAME.yaml`.

The same command goes on after an interruption. Ctrl+C and SIGTERM save first.

exit codes: 0 done, 2 something is wrong with what was given or with the machine (one line on stderr says what),
130 interrupted, 143 terminated.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a script from a clone that is not installed
    sys.path.insert(0, str(ROOT))

from reflect_core.types import UserError  # noqa: E402
from trainer.config import TrainConfig, filled_config, load_config  # noqa: E402
from trainer.folder import check_writable, claim, locked  # noqa: E402
from trainer.interrupt import Terminated, terminable  # noqa: E402
from trainer.trouble import explained  # noqa: E402

Report = Callable[[str], None]


class _Parser(argparse.ArgumentParser):
    """Wrong arguments are errors like all others: one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; try '{self.prog} --help'")


def run_task(config: TrainConfig, provenance: dict, report: Report) -> Path:
    """Dispatch on the config's task; imports only what it needs."""
    if config.task == "harvest":
        from trainer.tasks.harvest import harvest
        return harvest(config, provenance, report)
    if config.task == "bundle":
        from trainer.tasks.bundle import bundle
        return bundle(config, provenance, report)
    from trainer.loop import train
    if config.task == "vae":
        from trainer.tasks.vae import VaeTask
        task = VaeTask(config)
    elif config.task == "sana_vae":
        from trainer.tasks.sana.vae import SanaVaeTask
        task = SanaVaeTask(config)
    elif config.task == "sana_text":
        from trainer.tasks.sana.text import SanaTextTask
        task = SanaTextTask(config)
    elif config.task == "sana_vision":
        from trainer.tasks.sana.vision import SanaVisionTask
        task = SanaVisionTask(config)
    elif config.task == "sana_base":
        from trainer.tasks.sana.base import SanaBaseTask
        task = SanaBaseTask(config)
    elif config.task == "reflect":
        from trainer.tasks.sana.reflect import ReflectTask
        task = ReflectTask(config, report)
    elif config.task == "reflect_context":
        from trainer.tasks.sana.tell import TellTask
        task = TellTask(config, report)
    elif config.task == "text":
        from trainer.tasks.text import TextTask
        task = TextTask(config)
    elif config.task == "base":
        from trainer.tasks.base import BaseTask
        task = BaseTask(config)
    else:
        from trainer.tasks.corrector import CorrectorTask
        task = CorrectorTask(config, report)
    return train(config, task, provenance, report)


def commit() -> str:
    """The commit that trains, with a mark if files differ from it; 'unknown' outside a clone."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno", "--", "trainer", "reflect_core"],
                               cwd=ROOT, capture_output=True, text=True, check=True)
        return head.stdout.strip() + ("-dirty" if dirty.stdout.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def run(config: TrainConfig, config_file: str, report: Report) -> Path:
    """Everything behind the checked config."""
    out, replaced = Path(config.out), config.task == "bundle"  # as a whole; a run goes on in its folder
    check_writable(out.parent if replaced else out)
    with nullcontext() if replaced else locked(out):
        if not replaced:
            claim(out, config.task)
        import torch

        from trainer.tasks.common import check_device

        check_device(config.device)
        torch.manual_seed(config.seed)
        provenance = {"config": filled_config(config.to_json()), "config_file": Path(config_file).name,
                      "seed": config.seed, "commit": commit(), "torch": torch.__version__}
        with terminable():
            return run_task(config, provenance, report)


def main(argv: list[str] | None = None) -> int:
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="a YAML file of trainer/configs/")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="override a setting, for example --set steps=200 --set data.bank=1000")
    try:
        args = parser.parse_args(argv)
        config = load_config(args.config, args.set)
        result = run(config, args.config, report=lambda line: print(line, flush=True))
    except Terminated:
        print("terminated", file=sys.stderr)
        return 143
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        line = explained(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 2
    print(f"done: {result}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
