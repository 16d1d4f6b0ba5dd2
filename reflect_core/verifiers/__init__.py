"""Judges: from a prompt and pictures to verdicts."""

from .flipping import FlippingVerifier
from .shapes import ShapesVerifier

__all__ = ["FlippingVerifier", "ShapesVerifier"]
