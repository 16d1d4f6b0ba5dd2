"""The FLUX.1 family with ReflectionFlow's corrector (arXiv 2504.16080).

Read in this order: `transformer.py` (the forward), `blocks.py` (its two kinds of block), `lora.py` (the
corrector's weights), `options.py` (the switches), `pipeline.py` (requests to pictures); `encoding.py`,
`latents.py` and `folder.py` are its inputs, `requests.py`, `lora_file.py` and `memory.py` say what is wrong
with those, `timing.py` measures a step.
"""
