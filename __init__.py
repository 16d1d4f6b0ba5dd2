"""What ComfyUI imports: the extension's entry point and the folder of its help pages, nothing else."""

try:
    from .nodes import WEB_DIRECTORY, comfy_entrypoint
except ImportError:
    # Not imported as a package: pytest, which looks at this file because it lies beside the tests.
    if __package__:
        raise
else:
    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
