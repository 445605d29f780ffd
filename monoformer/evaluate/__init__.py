"""Evaluators: each has `run()`, which yields (name, value)."""
