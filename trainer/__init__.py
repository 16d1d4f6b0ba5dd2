"""The trainer. Read in this order: `train.py` (the entry point), `config.py` and `settings.py` (every key),
`loop.py` (what all tasks share), `tasks/` (one file a task), `triplets.py` and `shapes.py` (where data comes from).
What keeps a run whole: `folder.py` (its files), `checkpoint.py`, `bank.py` and `identity.py` (data encoded once, and
known again), `interrupt.py` and `trouble.py` (signals, and a machine at its end).
"""
