"""The shapes world: scenes of a few coloured shapes, prompts about them, and exact eyes to judge them."""
