"""The trainer: one entry point (`train.py`), one loop (`loop.py`), one file a task."""
