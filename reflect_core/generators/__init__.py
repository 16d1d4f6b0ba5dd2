"""Generators: one folder a model family, each with a class that has `from_folder` and `draw`."""
