"""What ComfyUI imports: the extension's entry point and the folder of its help pages, nothing else."""

from importlib.util import find_spec

# pytest imports this file too, because it lies beside the tests; there is no ComfyUI then.
if find_spec("comfy_api") is not None:
    from .nodes import WEB_DIRECTORY, comfy_entrypoint

    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
