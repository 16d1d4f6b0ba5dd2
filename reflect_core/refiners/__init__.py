"""Refiners: the same request in other words."""

from .shapes import ShapesRefiner

__all__ = ["ShapesRefiner"]
