"""The arguments of every command, with their help texts."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields
from importlib import import_module
from typing import NoReturn

from .. import __version__
from ..search import POLICIES
from ..types import UserError

PICTURES = 20
MODEL = "shapes-flux"
EXIT_CODES = """exit codes:
  0    the judge accepted a picture (replay: every picture came out the same)
  2    something is wrong with what was given; one line on stderr says what, nothing on disk was changed
  3    finished without an accepted picture (replay: some picture came out differently)
  130  interrupted by Ctrl+C; the record can be resumed
"""


class _Parser(argparse.ArgumentParser):
    """Wrong arguments are errors like all others: one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; try '{self.prog} --help'")


def make_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="reflect", description="Draw, look, say what is wrong, draw again: a search for a picture "
                     "that shows what its prompt asks for.", epilog=EXIT_CODES,
                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"reflect {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _run(commands)
    _resume(commands)
    _replay(commands)
    _show(commands)
    _bench(commands)
    return parser


def _run(commands) -> None:
    parser = _command(commands, "run", "run:run", "draw a prompt until the judge accepts or the budget is spent",
                      epilog=f"{_policy_settings()}\n{EXIT_CODES}")
    parser.add_argument("prompt", metavar="PROMPT", help="what to draw, e.g. 'two red circles left of a blue star'")
    _model(parser)
    group = parser.add_argument_group("the search")
    group.add_argument("--policy", default="reflection_flow", choices=[*POLICIES, "official"],
                       help="how to search (default: %(default)s); 'official' is the script of the ReflectionFlow "
                       "authors: its own number of pictures, all its rounds, its way of joining texts")
    group.add_argument("--pictures", type=int, metavar="N", help="never more pictures than this (default: "
                       f"{PICTURES}; official: as many as it draws)")
    group.add_argument("--evaluations", type=int, metavar="N", help="never more denoiser evaluations than this")
    group.add_argument("--judge-calls", type=int, metavar="N", help="never more judge calls than this")
    group.add_argument("--seconds", type=float, metavar="S", help="begin nothing new after so many seconds")
    group.add_argument("--judge", default="shapes", metavar="NAME", help="who judges, reflects and rewrites prompts: "
                       "'shapes', the exact judge of the shapes world (default), or 'me': you are shown each "
                       "picture and asked, which works for every model and prompt")
    group.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings",
                       help="a setting of the policy, see below; may be repeated")
    group = parser.add_argument_group("the pictures", "what is not given comes from the model's reflect.json")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="all noise follows from it (default: 0)")
    group.add_argument("--steps", type=int, metavar="N", help="denoising steps of a picture")
    group.add_argument("--guidance", type=float, metavar="G", help="guidance scale")
    group.add_argument("--size", metavar="N or WxH", help="pixels")
    group.add_argument("--chunk", type=int, default=4, metavar="N", help="pictures for one call of the model; more "
                       "are faster each, fewer waste less when one is accepted (default: 4)")
    _output(parser)
    parser.add_argument("--out", metavar="FOLDER", help="where the record goes (default: runs/<time>-<prompt>)")


def _resume(commands) -> None:
    parser = _command(commands, "resume", "run:resume", "go on with a run that was interrupted")
    parser.add_argument("run", metavar="RUN", help="the folder of the run")
    _moved_model(parser)
    _output(parser)


def _replay(commands) -> None:
    parser = _command(commands, "replay", "look:replay", "draw a run's pictures again and compare them to the bit")
    parser.add_argument("run", metavar="RUN", help="the folder of the run")
    _moved_model(parser)
    _output(parser)


def _show(commands) -> None:
    parser = _command(commands, "show", "look:show", "write a run's tree as a picture and as a web page")
    parser.add_argument("run", metavar="RUN", help="the folder of the run")
    parser.add_argument("--out", metavar="FOLDER", help="where tree.png and index.html go (default: into RUN)")
    _output(parser)


def _bench(commands) -> None:
    bench = commands.add_parser("bench", help="measure how well and how fast it works",
                                description="Measure how well and how fast it works.")
    kinds = bench.add_subparsers(title="benchmarks", metavar="BENCHMARK", required=True)

    parser = _command(kinds, "shapes", "bench:shapes", "success of every policy on the evaluation set of the shapes "
                      "world, with an exact judge and with one that errs")
    _model(parser)
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of all runs (default: 0)")
    parser.add_argument("--limit", type=int, metavar="N", help="prompts of each task (default: all)")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="only these tasks (default: all seven, and "
                        "'unseen')")
    parser.add_argument("--policies", nargs="+", metavar="NAME", help="only these rows of the table, e.g. 'best of 20'")
    parser.add_argument("--flip", type=float, default=0.1, metavar="P", help="the chance with which the erring judge "
                        "turns a check over; 0 leaves it out (default: 0.1)")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="pictures drawn together (default: 32)")
    parser.add_argument("--steps", type=int, metavar="N", help="denoising steps (default: the model's)")
    parser.add_argument("--guidance", type=float, metavar="G", help="guidance scale (default: the model's)")
    parser.add_argument("--json", metavar="FILE", dest="json_file", help="write everything measured to this file")
    parser.add_argument("--out", metavar="FOLDER", default="runs/bench-shapes", help="where finished work is kept, so "
                        "that the same command goes on after an interruption, and the plot goes (default: %(default)s)")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")

    parser = _command(kinds, "speed", "bench:speed", "time to the first and to 20 pictures, memory, corrector step, "
                      "and what the search itself costs")
    _model(parser)
    parser.add_argument("--prompt", default="three red circles left of a blue star and a yellow square", help="what "
                        "to draw (default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=PICTURES, metavar="N", help="pictures (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=15, metavar="N", help="timed pairs of steps (default: 15)")
    _output(parser)


def _command(commands, name: str, target: str, help: str, epilog: str | None = None) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.",
                                 epilog=epilog or EXIT_CODES,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(command=_lazily(target))
    return parser


def _lazily(target: str) -> Callable[[argparse.Namespace], int]:
    """`module:function` of this package, imported when it is called."""
    module, name = target.split(":")
    return lambda args: getattr(import_module(f".{module}", __package__), name)(args)


def _model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the model")
    group.add_argument("--model", default=MODEL, metavar="NAME or FOLDER", help="a bundled model by its name, or a "
                       "folder in diffusers layout (default: %(default)s)")
    group.add_argument("--lora", metavar="FILE", help="the corrector's weights (default: those in the model's folder)")
    group.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps or auto (default: cuda where "
                       "there is one)")
    group.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"],
                       help="default: float32 on the cpu, else bfloat16")
    group.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", dest="options",
                       help="an option of the model's family, e.g. text_join=search; may be repeated")


def _moved_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="NAME or FOLDER", help="where the model is now (default: where it was)")
    parser.add_argument("--lora", metavar="FILE", help="where the corrector's weights are now (default: where they "
                        "were)")
    parser.add_argument("--device", help="another device than on the record")


def _output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout instead of text")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def _policy_settings() -> str:
    lines = ["settings of the policies, for --set (default: what fits the number of pictures):"]
    for name, policy in POLICIES.items():
        lines.append(f"  {name}")
        lines += [f"    {f.name}={'' if f.default is None else str(f.default).lower()}" for f in fields(policy)]
    return "\n".join(lines) + "\n"
