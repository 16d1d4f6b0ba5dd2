"""Reflect-DiT: SANA that sees its own flawed pictures, each with what was said of it (arXiv 2503.12271)."""
