"""The arguments of every command, with their help texts."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module
from typing import NoReturn

from .. import __version__
from ..presets.choice import DTYPES
from ..presets.published import published_names
from ..search import POLICIES
from ..types import UserError
from .help import PICTURES, judge_help, options_help, settings_help

MODEL = "shapes-flux"
WRONG = "something is wrong with what was given; one line on stderr says what; nothing on disk is harmed"


def _exit_codes(good: str, bad: str | None, interrupted: str) -> str:
    codes = {0: good, 2: WRONG, 3: bad, 130: f"interrupted by Ctrl+C; {interrupted}"}
    return "\n".join(["exit codes:", *(f"  {code:<4} {said}" for code, said in codes.items() if said)])


SEARCH_CODES = _exit_codes("the judge accepted a picture", "the search ended without an accepted picture",
                           "'reflect resume' goes on with the run")
REPLAY_CODES = _exit_codes("every picture came out the same", "some picture came out differently", "nothing is lost")
SHOW_CODES = _exit_codes("picture and page are written", None, "the record is not touched")
DOCTOR_CODES = _exit_codes("what was looked at works", "something does not", "nothing is lost")
DOWNLOAD_CODES = _exit_codes("all is here", "nobody said yes", "the same command fetches what is still missing")
DOWNLOAD_HELP = """Files, sizes and licences are shown first, and you are asked. A connection that breaks is taken up
where it was; after an interruption the same command fetches the files that are not whole yet.
HF_HOME, HF_ENDPOINT (a mirror), HF_HUB_OFFLINE and the login of 'hf auth login' hold as ever; FLUX.1-dev is given to
those who have accepted its licence on its page."""
BENCH_CODES = _exit_codes("measured", None, "of 'bench shapes' the same command does the rest")


EXAMPLES = """examples:
  reflect run "two red circles left of a blue star"
  reflect run "three green squares" --policy best_of_n --pictures 8
  reflect show runs/20260101-120000-three-green-squares
  reflect COMMAND --help     all that a command takes"""


class _Parser(argparse.ArgumentParser):
    """Wrong arguments are errors like all others: one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; try '{self.prog} --help'")


def make_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="reflect", description="Draw, look, say what is wrong, draw again: a search for a picture "
                     "that shows what its prompt asks for.", epilog=f"{EXAMPLES}\n\n{SEARCH_CODES}",
                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"reflect {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _run(commands)
    _resume(commands)
    _replay(commands)
    _show(commands)
    _doctor(commands)
    _download(commands)
    _bench(commands)
    return parser


def _run(commands) -> None:
    parser = _command(commands, "run", "run:run", "draw a prompt until the judge accepts or the budget is spent",
                      f"{settings_help()}\n\n{options_help()}\n\n{judge_help()}\n\n{SEARCH_CODES}")
    parser.add_argument("prompt", metavar="PROMPT", help="what to draw, e.g. 'two red circles left of a blue star'")
    _model(parser)
    group = parser.add_argument_group("the search")
    group.add_argument("--policy", choices=[*POLICIES, "official"],
                       help="how to search (default: that of the model's paper): reflection_flow, of FLUX and of "
                       "editors, corrects pictures in rounds; reflect_dit, of SANA, draws one picture after another "
                       "with the earlier ones in view; best_of_n draws anew and keeps the best, noise_prompt also "
                       "rewrites the prompt, and 'official' is the search of the model's paper as the script of its "
                       "authors has it: of "
                       "FLUX 32 pictures from noise and 32 corrections, all of them drawn, and its way of joining "
                       "texts; of SANA 20 pictures, the last one being the answer where none is accepted")
    group.add_argument("--pictures", type=int, metavar="N", help="never more pictures than this (default: "
                       f"{PICTURES}; official: as many as it draws)")
    group.add_argument("--evaluations", type=int, metavar="N", help="never more denoiser evaluations than this (a "
                       "picture takes one for each step)")
    group.add_argument("--judge-calls", type=int, metavar="N", help="never more judge calls than this")
    group.add_argument("--seconds", type=float, metavar="S", help="begin nothing new after so many seconds")
    _judge(parser)
    group.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings",
                       help="a setting of the policy, see below; may be repeated")
    group = parser.add_argument_group("the pictures", "what is not given comes from the model's reflect.json")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="all noise follows from it: the same seed "
                       "gives the same run (default: 0)")
    group.add_argument("--steps", type=int, metavar="N", help="denoising steps of a picture")
    group.add_argument("--guidance", type=float, metavar="G", help="how closely to follow the prompt")
    group.add_argument("--size", metavar="N or WxH", help="pixels, e.g. 64 or 1024x768")
    group.add_argument("--chunk", type=int, default=4, metavar="N", help="pictures for one call of the model; more "
                       "are faster each, fewer waste less when one is accepted (default: 4)")
    _output(parser)
    parser.add_argument("--out", metavar="FOLDER", help="where the record goes (default: runs/<time>-<prompt>)")


def _judge(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the judge")
    group.add_argument("--judge", default="shapes", metavar="WHO", help="who judges, reflects and rewrites prompts: "
                       "'shapes', the exact judge of the shapes world (default); 'me': you are shown each picture and "
                       "asked; the address of an OpenAI-compatible server with a model that sees pictures, such as "
                       "http://127.0.0.1:1234/v1; the folder of such a model; a reward model, clip-score, pick-score, "
                       "aesthetic or image-verifier; or an ensemble")
    group.add_argument("--judge-option", action="append", default=[], metavar="NAME=VALUE", dest="judge_options",
                       help="an option of such a judge, e.g. model=gemma3:12b, see below; may be repeated")
    group.add_argument("--reflector", metavar="WHO", help="who says what is wrong instead (default: the judge)")
    group.add_argument("--reflector-option", action="append", default=[], metavar="NAME=VALUE",
                       dest="reflector_options", help="its options")
    group.add_argument("--refiner", metavar="WHO", help="who rewrites prompts instead (default: the judge)")
    group.add_argument("--audit", metavar="WHO", help="who looks at the pictures too, without a say: the report sets "
                       "both side by side, so that a judge whose mistakes are exploited is seen")
    group.add_argument("--audit-option", action="append", default=[], metavar="NAME=VALUE", dest="audit_options",
                       help="its options")
    group.add_argument("--refiner-option", action="append", default=[], metavar="NAME=VALUE", dest="refiner_options",
                       help="its options")


def _resume(commands) -> None:
    parser = _command(commands, "resume", "run:resume", "go on with a run that was interrupted", SEARCH_CODES)
    parser.add_argument("run", metavar="RUN", help="the folder of the run")
    _moved_model(parser)
    for role in ("judge", "reflector", "refiner", "audit"):
        parser.add_argument(f"--{role}-option", action="append", default=[], metavar="NAME=VALUE",
                            dest=f"{role}_options", help=f"an option of the {role} that is another one now, such as "
                            "url=ADDRESS, or server-2.url=ADDRESS of a member of an ensemble; may be repeated")
    _output(parser)


def _replay(commands) -> None:
    parser = _command(commands, "replay", "look:replay", "draw a run's pictures again and compare them to the bit",
                      REPLAY_CODES)
    parser.add_argument("run", metavar="RUN", help="the folder of the run")
    _moved_model(parser)
    _output(parser)


def _show(commands) -> None:
    parser = _command(commands, "show", "look:show", "write a run's tree as a picture and as a web page", SHOW_CODES)
    parser.add_argument("run", metavar="RUN", help="the folder of the run")
    parser.add_argument("--out", metavar="FOLDER", help="where tree.png and index.html go (default: into RUN)")
    _output(parser)


def _doctor(commands) -> None:
    parser = _command(commands, "doctor", "doctor:doctor", "what is installed, what each published model still needs, "
                      "and whether a judge answers properly", DOCTOR_CODES)
    parser.add_argument("--models", action="append", metavar="FOLDER", dest="roots", help="where published models are "
                        "looked for, as for 'reflect run'; may be repeated")
    parser.add_argument("--judge", metavar="WHO", help="a judge to ask, as for 'reflect run'")
    parser.add_argument("--judge-option", action="append", default=[], metavar="NAME=VALUE", dest="judge_options",
                        help="an option of that judge; may be repeated")
    parser.add_argument("--prompt", default="a plain red picture", help="what it is asked about a red and a blue "
                        "picture (default: %(default)s)")
    _output(parser)


def _download(commands) -> None:
    parser = _command(commands, "download", "download:download", "fetch the weights of a published model from the "
                      "Hugging Face hub; the only command that downloads", f"{DOWNLOAD_HELP}\n\n{DOWNLOAD_CODES}")
    parser.add_argument("preset", metavar="PRESET", help=f"{', '.join(published_names())}, or the id of a repository "
                        "such as Qwen/Qwen2.5-VL-7B-Instruct, with a folder of it behind it if need be")
    parser.add_argument("--to", metavar="FOLDER", help="a folder for it, such as a ComfyUI's models (default: the "
                        "Hugging Face cache, where --model finds it by name)")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    _output(parser)


def _bench(commands) -> None:
    bench = commands.add_parser("bench", help="measure how well and how fast it works",
                                description="Measure how well and how fast it works.")
    kinds = bench.add_subparsers(title="benchmarks", metavar="BENCHMARK", required=True)

    parser = _command(kinds, "shapes", "bench:shapes", "success of every policy on the evaluation set of the shapes "
                      "world, with an exact judge and with one that errs", BENCH_CODES)
    _model(parser, None, "only this one (default: the bundled ones, side by side)", roots=False)
    parser.add_argument("--models", nargs="+", metavar="[LABEL=]MODEL", help="several side by side, each a bundled "
                        "name or a folder, with the label behind its rows; of a second corrector of a family only "
                        "what it corrects")
    parser.add_argument("--beside", nargs="+", default=[], metavar="[LABEL=]FILE", help="what --json wrote of an "
                        "earlier benchmark with the same prompts and judges: its rows stand in table and plot too")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of all runs (default: 0)")
    parser.add_argument("--limit", type=int, metavar="N", help="prompts of each task (default: all, 60)")
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
                      "and what the search itself costs", BENCH_CODES)
    _model(parser)
    parser.add_argument("--prompt", default="three red circles left of a blue star and a yellow square", help="what "
                        "to draw (default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=PICTURES, metavar="N", help="pictures (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=15, metavar="N", help="timed pairs of steps (default: 15)")
    _output(parser)

    parser = _command(kinds, "memory", "bench:memory", "what the published models need of memory, computed without "
                      "their weights, for each way to keep weights and each offload", BENCH_CODES)
    parser.add_argument("--weights", nargs="+", metavar="WAY", help="only these ways: float32, bfloat16, fp8, int8, "
                        "nf4, nf4-double (default: all)")
    parser.add_argument("--size", type=int, default=1024, metavar="N", help="pixels a side (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="pictures at once (default: %(default)s)")
    parser.add_argument("--device", help="measure bfloat16 on this GPU too, e.g. cuda, with weights of the true size "
                        "that are all zero (default: computed only)")
    _output(parser)

    parser = _command(kinds, "comfyui", "bench:comfyui", "a loop of 16 rounds in a real ComfyUI beside the same search "
                      "by the library", BENCH_CODES)
    _output(parser)


def _command(commands, name: str, target: str, help: str, epilog: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.", epilog=epilog,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(command=_lazily(target))
    return parser


def _lazily(target: str) -> Callable[[argparse.Namespace], int]:
    """`module:function` of this package, imported when it is called."""
    module, name = target.split(":")
    return lambda args: getattr(import_module(f".{module}", __package__), name)(args)


def _model(parser: argparse.ArgumentParser, default: str | None = MODEL, what: str = "", roots: bool = True) -> None:
    group = parser.add_argument_group("the model")
    group.add_argument("--model", default=default, metavar="NAME or PATH", help="a bundled or published model by its "
                       "name, a folder in diffusers layout, a single file (.safetensors or .gguf) of FLUX, or the id "
                       f"of a repository in the Hugging Face cache{'; ' + what if what else ' (default: %(default)s)'}")
    _parts(group, roots)
    group.add_argument("--lora", metavar="FILE or FOLDER", help="the corrector's weights, a .safetensors "
                       "file or its folder (default: those in the model's folder)")
    group.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps or auto (default: cuda where "
                       "there is one)")
    group.add_argument("--dtype", default="auto", choices=DTYPES,
                       help="default: float32 on the cpu, else bfloat16; FLUX on a card before Ampere float16")
    group.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", dest="options",
                       help="an option of the model, e.g. max_batch=1, see 'reflect run --help'; may be "
                       "repeated")


def _parts(group, roots: bool = True) -> None:
    group.add_argument("--part", action="append", default=[], metavar="NAME=PATH", dest="parts", help="a component "
                       "from elsewhere, a folder or a single file: transformer, vae, text_encoder, text_encoder_2, "
                       "tokenizer, tokenizer_2, scheduler, or image_encoder of Reflect-DiT; of an editor's base "
                       "base:vae and so on; may be repeated")
    if not roots:  # `bench shapes` has a --models of its own
        return
    group.add_argument("--models", action="append", metavar="FOLDER", dest="roots", help="where a published model is "
                       "looked for: a ComfyUI, its models folder or extra_model_paths.yaml, or a folder of your own; "
                       "may be repeated (also: REFLECT_MODELS)")


def _moved_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="NAME or PATH", help="where the model is now (default: where it was)")
    _parts(parser)
    parser.add_argument("--lora", metavar="FILE or FOLDER", help="where the corrector's weights are now (default: "
                        "where they were)")
    parser.add_argument("--device", help="another device than on the record")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", dest="options",
                        help="base=MODEL: where the model is now that draws the first pictures for an editor; "
                        "offload=WAY: another way to keep the weights")


def _output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout instead of text")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
