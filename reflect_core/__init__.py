"""Reflect: draw, look, say what is wrong, draw again. The library behind the ComfyUI pack."""

__version__ = "0.1.0"
