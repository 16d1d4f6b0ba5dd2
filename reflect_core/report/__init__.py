"""A run to look at: the tree of candidates as a picture, and as one HTML page that needs nothing else."""

from .page import html_page
from .picture import tree_picture

__all__ = ["html_page", "tree_picture"]
