"""Train a part of a reflective model: `python trainer/train.py --config trainer/configs/NAME.yaml`.

The same command goes on after an interruption. Ctrl+C saves first.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a script from a clone that is not installed
    sys.path.insert(0, str(ROOT))

from reflect_core.types import UserError  # noqa: E402
from trainer.config import TrainConfig, load_config  # noqa: E402


def run_task(config: TrainConfig, provenance: dict, report) -> Path:
    """Dispatch on the config's task; imports only what it needs."""
    if config.task == "harvest":
        from trainer.tasks.harvest import harvest
        return harvest(config, provenance, report)
    if config.task == "bundle":
        from trainer.tasks.bundle import bundle
        return bundle(config, provenance, report)
    from trainer.loop import train
    if config.task == "vae":
        from trainer.tasks.vae import VaeTask as Task
    elif config.task == "base":
        from trainer.tasks.base import BaseTask as Task
    else:
        from trainer.tasks.corrector import CorrectorTask as Task
    return train(config, Task(config), provenance, report)


def commit() -> str:
    """The commit that trains, with a mark if files differ from it; 'unknown' outside a clone."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno", "--", "trainer", "reflect_core"],
                               cwd=ROOT, capture_output=True, text=True, check=True)
        return head.stdout.strip() + ("-dirty" if dirty.stdout.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="a YAML file of trainer/configs/")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="override a setting, for example --set steps=200 --set data.bank=1000")
    args = parser.parse_args(argv)
    try:
        config = load_config(args.config, args.set)
        import torch

        torch.manual_seed(config.seed)
        provenance = {"config": config.to_json(), "config_file": Path(args.config).name, "seed": config.seed,
                      "commit": commit(), "torch": torch.__version__}
        result = run_task(config, provenance, report=lambda line: print(line, flush=True))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(f"done: {result}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
