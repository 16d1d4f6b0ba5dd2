"""`python -m reflect_core`: the same command line as `reflect`.

And `python reflect_core/__main__.py` for a Python that does not look into the folder that it is called from, as the one
of ComfyUI's portable build: the path is set before anything is imported that a module here has the name of.
"""

import sys

if __name__ == "__main__":
    if not __package__:
        here = __file__.replace("\\", "/").rpartition("/")[0] or "."
        sys.path[:] = [f"{here}/..", *(path for path in sys.path if path.replace("\\", "/") != here)]
    from reflect_core.cli import main

    raise SystemExit(main())
