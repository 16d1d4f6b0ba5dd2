"""The trainer. Read in this order: `train.py` (the entry point), `config.py` and `settings.py` (every key),
`loop.py` (what all tasks share), `tasks/` (one file a task), `triplets.py` and `shapes.py` (where data comes from).
"""
