"""The command line: `reflect run`, `resume`, `replay`, `show`, `download` and `bench`.

A skin over the library: it reads arguments, prints, and turns errors into exit codes. Nothing heavy is
imported before the arguments, the prompt and the folders are known to be good, so that a typing mistake
is told at once.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Sequence

ACCEPTED, BAD_INPUT, NOT_ACCEPTED, INTERRUPTED = 0, 2, 3, 130
"""Exit codes. NOT_ACCEPTED: it came to its end, and the answer is no."""


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the arguments say; returns the exit code."""
    try:
        return _main(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _main(words: Sequence[str]) -> int:
    # Imported here, where Ctrl+C is already waited for: it takes a moment.
    from ..types import UserError

    # Of `bench shapes --json FILE` the document goes into the file.
    as_json = "--json" in words and words[:2] != ["bench", "shapes"]
    try:
        return _do(words)
    except UserError as error:
        return _refuse(str(error), as_json)
    except BrokenPipeError:
        # Whoever read our output has gone (`reflect ... | head`): nothing is left to say.
        _give_up_stdout()
        return 1
    except OSError as error:
        # One that nobody foresaw, such as a full disk behind stdout: still no reason for a traceback.
        return _refuse(f"the system refused something ({error}); try to make room on the disk, and to check the "
                       "rights on the folders that were named", as_json)


def _do(words: Sequence[str]) -> int:
    for stream in (sys.stdout, sys.stderr, sys.stdin):
        # A prompt or an answer may hold letters that the terminal's encoding lacks; that must not end a run.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    # diffusers imports it wherever it is installed, and it tells everybody what it could be faster with.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from .parser import make_parser

    try:
        args = make_parser().parse_args(words)
        return args.command(args)
    finally:
        # At the interpreter's end it would be too late to say what went wrong, or to keep silent.
        sys.stdout.flush()


def _refuse(message: str, as_json: bool) -> int:
    message = " ".join(message.split())
    try:
        print(f"error: {message}", file=sys.stderr)
        if as_json:
            print(json.dumps({"error": message}))
        sys.stdout.flush()
    except OSError:
        # Neither can be written to: the exit code must do.
        _give_up_stdout()
    return BAD_INPUT


def _give_up_stdout() -> None:
    """Let what is left in the buffer go nowhere, or the interpreter complains when it ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
