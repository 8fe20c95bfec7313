"""Blocks, attention, MLPs and norms of a Hugging Face model as trees of named taps.

Each component holds the taps of one Hugging Face module and shows its weights in TransformerLens'
layout. The Hugging Face modules themselves stay where they are: a component only refers to them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import einops
import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlm_lens.architectures.base import (
    ArchitectureError,
    BlockPaths,
    ProjectorPaths,
    StackPaths,
    module_at,
)
from vlm_lens.hooks import AttentionProbe, NormProbe, Tap, input_of, output_of
from vlm_lens.hooks.tap import heads_view, shared_input_of


class Component(nn.Module):
    """Taps of one Hugging Face module, which it refers to without owning its parameters."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._referred = (module,)  # in a tuple: not a submodule, so parameters appear once

    @property
    def hf_module(self) -> Any:
        """The Hugging Face module that the taps of this component are in."""
        return self._referred[0]


def weight_of(linear: Any) -> Float[Tensor, "d_in d_out"]:
    """A linear layer's weight, to be multiplied from the right as in TransformerLens."""
    weight = linear.weight
    if not weight.is_floating_point():
        raise TypeError(
            f"Expected floating-point weights, but {type(linear).__name__} keeps {weight.dtype}: "
            "the model is quantised. Its activations can be hooked; to read weights, load it "
            "without quantisation."
        )
    return weight.T


def bias_of(linear: Any) -> Float[Tensor, " d_out"]:
    """A linear layer's bias, or zeros where it has none."""
    if linear.bias is not None:
        return linear.bias
    weight = weight_of(linear)
    return torch.zeros(weight.shape[1], dtype=weight.dtype, device=weight.device)


class HookedNorm(Component):
    """A LayerNorm or RMSNorm: `hook_scale`, `hook_normalized`, weights `w` and `b`."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        probe = NormProbe(module)
        self.hook_scale = probe.scale
        self.hook_normalized = probe.normalized
        self.eps = probe.eps

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Apply the norm, weight and bias included."""
        return self.hf_module(x)

    @property
    def w(self) -> Float[Tensor, " d_model"]:
        return self.hf_module.weight

    @property
    def b(self) -> Float[Tensor, " d_model"]:
        bias = getattr(self.hf_module, "bias", None)
        return torch.zeros_like(self.w) if bias is None else bias


class HookedAttention(Component):
    """Attention: q, k, v and z per head, rotated q and k, scores, pattern."""

    def __init__(self, block: nn.Module, paths: BlockPaths, *, n_heads: int, n_kv: int) -> None:
        module = module_at(block, paths.attn)
        super().__init__(module)
        self._linears = tuple(module_at(block, path) for path in (paths.q, paths.k, paths.v))
        self._out = (module_at(block, paths.o),)
        self.n_heads, self.n_key_value_heads = n_heads, n_kv
        q, k, v = self._linears
        self.hook_q = Tap(output_of(q, view=heads_view(n_heads)))
        self.hook_k = Tap(output_of(k, view=heads_view(n_kv)))
        self.hook_v = Tap(output_of(v, view=heads_view(n_kv)))
        self.probe = AttentionProbe(module, rotary=paths.rotary)
        if self.probe.rot_q is not None and self.probe.rot_k is not None:
            self.hook_rot_q, self.hook_rot_k = self.probe.rot_q, self.probe.rot_k
        self.hook_attn_scores, self.hook_pattern = self.probe.scores, self.probe.pattern
        self.hook_z = Tap(input_of(self._out[0], view=heads_view(n_heads)))

    def _split(self, index: int) -> Float[Tensor, "head d_model d_head"]:
        n_heads = (self.n_heads, self.n_key_value_heads, self.n_key_value_heads)[index]
        return einops.rearrange(weight_of(self._linears[index]), "d (h e) -> h d e", h=n_heads)

    def _split_bias(self, index: int) -> Float[Tensor, "head d_head"]:
        n_heads = (self.n_heads, self.n_key_value_heads, self.n_key_value_heads)[index]
        return bias_of(self._linears[index]).unflatten(0, (n_heads, -1))

    @property
    def W_Q(self) -> Float[Tensor, "head d_model d_head"]:
        return self._split(0)

    @property
    def W_K(self) -> Float[Tensor, "kv_head d_model d_head"]:
        return self._split(1)

    @property
    def W_V(self) -> Float[Tensor, "kv_head d_model d_head"]:
        return self._split(2)

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:
        return einops.rearrange(weight_of(self._out[0]), "(h e) d -> h e d", h=self.n_heads)

    @property
    def b_Q(self) -> Float[Tensor, "head d_head"]:
        return self._split_bias(0)

    @property
    def b_K(self) -> Float[Tensor, "kv_head d_head"]:
        return self._split_bias(1)

    @property
    def b_V(self) -> Float[Tensor, "kv_head d_head"]:
        return self._split_bias(2)

    @property
    def b_O(self) -> Float[Tensor, " d_model"]:
        return bias_of(self._out[0])


class HookedMLP(Component):
    """An MLP: `hook_pre`, `hook_post`, and in a gated one `hook_act` and `hook_pre_linear`."""

    def __init__(self, block: nn.Module, paths: BlockPaths) -> None:
        up, down = module_at(block, paths.mlp_in), module_at(block, paths.mlp_out)
        super().__init__(down)
        self._up, self._gate = (up,), None
        if paths.gate is not None and paths.act is not None:
            self._gate = (module_at(block, paths.gate),)
            self.hook_pre = Tap(output_of(self._gate[0]))
            self.hook_act = Tap(output_of(module_at(block, paths.act)))
            self.hook_pre_linear = Tap(output_of(up))
        else:
            self.hook_pre = Tap(output_of(up))
        self.hook_post = Tap(input_of(down, keyword="input"))

    @property
    def W_in(self) -> Float[Tensor, "d_model d_mlp"]:
        return weight_of(self._up[0])

    @property
    def W_gate(self) -> Float[Tensor, "d_model d_mlp"] | None:
        return None if self._gate is None else weight_of(self._gate[0])

    @property
    def W_out(self) -> Float[Tensor, "d_mlp d_model"]:
        return weight_of(self.hf_module)

    @property
    def b_in(self) -> Float[Tensor, " d_mlp"]:
        return bias_of(self._up[0])

    @property
    def b_out(self) -> Float[Tensor, " d_model"]:
        return bias_of(self.hf_module)


class HookedBlock(Component):
    """A transformer block: the residual stream before, between and after attention and MLP."""

    def __init__(self, module: nn.Module, paths: BlockPaths, *, n_heads: int, n_kv: int) -> None:
        super().__init__(module)
        self.hook_resid_pre = Tap(input_of(module))
        self.ln1 = HookedNorm(module_at(module, paths.ln1))
        self.attn = HookedAttention(module, paths, n_heads=n_heads, n_kv=n_kv)
        self.hook_attn_out = Tap(output_of(module_at(module, paths.o)))
        self.hook_resid_mid = Tap(shared_input_of(module_at(module, paths.ln2)))
        self.ln2 = HookedNorm(module_at(module, paths.ln2))
        self.mlp = HookedMLP(module, paths)
        self.hook_mlp_out = Tap(output_of(module_at(module, paths.mlp_out)))
        self.hook_resid_post = Tap(output_of(module))


def build_blocks(hf_model: nn.Module, paths: StackPaths) -> Iterable[HookedBlock]:
    """The blocks of one stack, in order."""
    config = getattr(hf_model.config, paths.config)
    n_heads = config.num_attention_heads
    n_kv = getattr(config, "num_key_value_heads", None) or n_heads
    modules = list(module_at(hf_model, paths.blocks).children())
    if len(modules) != config.num_hidden_layers:
        raise ArchitectureError(
            f"Expected {config.num_hidden_layers} blocks at {paths.blocks!r}, as "
            f"{paths.config}.num_hidden_layers says, but found {len(modules)}."
        )
    for module in modules:
        yield HookedBlock(module, paths.block, n_heads=n_heads, n_kv=n_kv)


class HookedEncoder(Component):
    """A vision encoder: where its residual stream starts, its blocks, what it hands on."""

    def __init__(self, hf_model: nn.Module, paths: StackPaths) -> None:
        start = module_at(hf_model, paths.start)
        super().__init__(start)
        self.hook_embed = Tap(input_of(start, keyword="inputs_embeds"))
        self.blocks = nn.ModuleList(build_blocks(hf_model, paths))
        if paths.output_layer is not None:
            self.output_layer = paths.output_layer(hf_model.config)
            self._block_modules = tuple(module_at(hf_model, paths.blocks))
            self.hook_out = Tap(self._output_wire())

    def _output_wire(self):
        """Hidden state i leaves block i - 1; state 0 is what enters the first block."""
        if self.output_layer == 0:
            return input_of(self._block_modules[0])
        return output_of(self._block_modules[self.output_layer - 1])


class HookedProjector(Component):
    """A two-layer projector: its input, its own neurons, and what the language model gets."""

    def __init__(self, hf_model: nn.Module, paths: ProjectorPaths) -> None:
        module = module_at(hf_model, paths.module)
        super().__init__(module)
        self.hook_in = Tap(input_of(module, keyword="image_features"))
        self.mlp = HookedProjectorMLP(hf_model, paths)
        self.hook_out = Tap(output_of(module))


class HookedProjectorMLP(Component):
    """The neurons of a two-layer projector."""

    def __init__(self, hf_model: nn.Module, paths: ProjectorPaths) -> None:
        first = module_at(hf_model, paths.linear_1)
        second = module_at(hf_model, paths.linear_2)
        super().__init__(second)
        self._first = (first,)
        self.hook_pre = Tap(output_of(first))
        self.hook_post = Tap(input_of(second, keyword="input"))

    @property
    def W_in(self) -> Float[Tensor, "d_vision d_mlp"]:
        return weight_of(self._first[0])

    @property
    def W_out(self) -> Float[Tensor, "d_mlp d_model"]:
        return weight_of(self.hf_module)

    @property
    def b_in(self) -> Float[Tensor, " d_mlp"]:
        return bias_of(self._first[0])

    @property
    def b_out(self) -> Float[Tensor, " d_model"]:
        return bias_of(self.hf_module)
