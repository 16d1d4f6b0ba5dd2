"""`reflect download`: say what would come, ask, and fetch it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..presets.download import Share, check_room, fetch, plan, said_bytes
from . import NOT_ACCEPTED
from .output import dumps


def download(args: argparse.Namespace) -> int:
    """`reflect download PRESET`."""
    shares = plan(args.preset, args.to)
    out = sys.stderr if args.json else sys.stdout
    for share in shares:
        print(_described(share), file=out)
    total = sum(share.size for share in shares)
    check_room(shares)
    if not args.yes and not _agreed(f"{said_bytes(total)} in all. Download?"):
        print("nothing was downloaded", file=out)
        if args.json:
            print(dumps({"preset": args.preset, "bytes": total, "downloaded": False}))
        return NOT_ACCEPTED
    folders = {share.source.repository: str(fetch(share, args.quiet or args.json)) for share in shares}
    if args.json:
        print(dumps({"preset": args.preset, "bytes": total, "downloaded": True, "folders": folders}))
    elif shares[0].source.kind == "LLM":
        folder = Path(folders[shares[0].source.repository], "" if args.to else shares[0].source.inside)
        print(f"all is here; judge with: reflect run \"a cat on a mat\" --model flux-corrector --judge {folder}")
    else:
        where = "" if args.to is None else f" --models {args.to}"
        print(f"all is here; draw with: reflect run \"a cat on a mat\" --judge me --model {args.preset}{where}")
    return 0


def _described(share: Share) -> str:
    lines = [f"{share.source.said}  {len(share.files)} files, {said_bytes(share.size)}",
             f"  licence: {share.licence} ({share.source.licence})",
             f"  to: {share.to or 'the Hugging Face cache'}"]
    if share.to is not None and len(share.lacking) < len(share.files):
        lines.append(f"  here already: {len(share.files) - len(share.lacking)} of its files")
    return "\n".join([*lines, *(f"    {said_bytes(size):>8}  {name}" for name, size in sorted(share.files.items()))])


def _agreed(question: str) -> bool:
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    try:
        return input().strip().lower() in ("y", "yes")
    except EOFError:
        return False
