"""`python -m reflect_core`: the same command line as `reflect`."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
