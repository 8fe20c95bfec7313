"""What vlm_lens knows of each model family: one declarative record a family."""

from vlm_lens.architectures.base import (
    Architecture,
    AttentionPaths,
    BlockPaths,
    MLPPaths,
    ProjectorPaths,
    StackPaths,
)
from vlm_lens.architectures.model_types import BLOCKS, blocks_of
from vlm_lens.architectures.registry import (
    architecture_of,
    records,
    register_architecture,
    supported_architectures,
)
from vlm_lens.hooks import ArchitectureError

__all__ = [
    "BLOCKS",
    "Architecture",
    "ArchitectureError",
    "AttentionPaths",
    "BlockPaths",
    "MLPPaths",
    "ProjectorPaths",
    "StackPaths",
    "architecture_of",
    "blocks_of",
    "records",
    "register_architecture",
    "supported_architectures",
]
