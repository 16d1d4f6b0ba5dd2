"""Editors as correctors: models that were made to edit a picture as they are told, and never saw a reflection.

Read in this order: `instruction.py` (a reflection as an edit instruction), `options.py`, `editor.py` (requests to
pictures, what the families share), `kontext.py` (FLUX.1 Kontext), `qwen.py` (Qwen-Image-Edit, with its `qwen_text.py`
and `qwen_folder.py`), `draw_and_edit.py` (another model for the first pictures). They keep the generator protocol with
a context of one, so that a trained corrector and a training-free one are told apart by nothing but the model's folder.
Repeated edits drift; how deep a search goes is the policy's business (`search/depth.py`).
"""
