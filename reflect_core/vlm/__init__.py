"""Language models that look at pictures: asked in this process (`local.py`) or over HTTP (`server.py`)."""
