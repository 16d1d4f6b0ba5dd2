"""Reflectors: from pictures and their verdicts to what should change, in words."""

from .shapes import ShapesReflector

__all__ = ["ShapesReflector"]
