"""Blocks, attention, MLPs and norms of a Hugging Face model as trees of named taps.

Each component holds the taps of one Hugging Face module and shows its weights in TransformerLens'
layout. The Hugging Face modules themselves stay where they are: a component only refers to them.
"""

from vlm_lens.architectures.components.attention import HookedAttention
from vlm_lens.architectures.components.block import HookedBlock
from vlm_lens.architectures.components.component import Component, bias_of, readable, weight_of
from vlm_lens.architectures.components.mlp import HookedMLP
from vlm_lens.architectures.components.norm import HookedNorm
from vlm_lens.architectures.components.projector import HookedProjector
from vlm_lens.architectures.components.stack import HookedStack
from vlm_lens.architectures.components.vocabulary import HookedEmbed, HookedUnembed

__all__ = [
    "Component",
    "HookedAttention",
    "HookedBlock",
    "HookedEmbed",
    "HookedMLP",
    "HookedNorm",
    "HookedProjector",
    "HookedStack",
    "HookedUnembed",
    "bias_of",
    "readable",
    "weight_of",
]
