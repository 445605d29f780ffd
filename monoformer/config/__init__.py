"""Frozen configuration dataclasses, one file a room. Standard library only; checked when they are made."""
