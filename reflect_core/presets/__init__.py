"""Named model sets: `load.py` finds, checks and loads them; each bundled one is a folder in here."""
