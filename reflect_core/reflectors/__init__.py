"""Reflectors: from pictures and their verdicts to what should change, in words."""

from .shapes import ShapesReflector
from .silent import SilentReflector
from .spoken import SpokenReflector

__all__ = ["ShapesReflector", "SilentReflector", "SpokenReflector"]
