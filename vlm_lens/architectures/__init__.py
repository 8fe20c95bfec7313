"""What vlm_lens knows of each model family: one declarative record a family."""

from vlm_lens.architectures.base import Architecture, BlockPaths, ProjectorPaths, StackPaths
from vlm_lens.architectures.registry import architecture_of, supported_architectures

__all__ = [
    "Architecture",
    "BlockPaths",
    "ProjectorPaths",
    "StackPaths",
    "architecture_of",
    "supported_architectures",
]
