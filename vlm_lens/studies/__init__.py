"""Studies: a method declared once, from which its command, page and docs entry follow."""

from vlm_lens.studies.study import study

__all__ = ["study"]
