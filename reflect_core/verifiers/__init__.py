"""Judges: from a prompt and pictures to verdicts."""

from .flipping import FlippingVerifier
from .none import NoVerifier
from .shapes import ShapesVerifier

__all__ = ["FlippingVerifier", "NoVerifier", "ShapesVerifier"]
