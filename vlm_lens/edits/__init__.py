"""Edits: what is done to a model for the length of a run."""

from vlm_lens.edits.activations import Add, Edit, Scale, Set, Value

__all__ = ["Add", "Edit", "Scale", "Set", "Value"]
