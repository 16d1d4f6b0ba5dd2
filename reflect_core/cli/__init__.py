"""The command line: `reflect run`, `resume`, `replay`, `show` and `bench`.

A skin over the library: it reads arguments, prints, and turns errors into exit codes. Nothing heavy is
imported before the arguments, the prompt and the folders are known to be good, so that a typing mistake
is told at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from ..types import UserError

ACCEPTED, BAD_INPUT, NOT_ACCEPTED, INTERRUPTED = 0, 2, 3, 130
"""Exit codes. NOT_ACCEPTED: it came to its end, and the answer is no."""


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the arguments say; returns the exit code."""
    from .parser import make_parser

    for stream in (sys.stdout, sys.stderr):
        # A prompt may hold letters that the terminal's encoding lacks; that must not end a run.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if argv is None else argv)
    # Of `bench shapes --json FILE` the document goes into the file.
    as_json = "--json" in words and words[:2] != ["bench", "shapes"]
    try:
        args = make_parser().parse_args(words)
        return args.command(args)
    except UserError as error:
        message = " ".join(str(error).split())
        if as_json:
            print(json.dumps({"error": message}))
        print(f"error: {message}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone (`reflect ... | head`): nothing is left to say.
        sys.stderr.close()
        return 1
