"""Benchmarks: what each policy is worth at equal cost, and how fast everything is."""
