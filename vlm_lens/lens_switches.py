"""Hook points that TransformerLens has behind a switch, since they cost memory when they are read.

They are of the language model, whose blocks TransformerLens' path patching and edge attribution
speak of. Switched off, they do not exist; switched on, they cost nothing until one is hooked.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from vlm_lens.config import HookedVLMConfig
from vlm_lens.hooks.names import SWITCH_OF
from vlm_lens.lens_circuits import LensCircuits
from vlm_lens.parts import parts_of, text_for


class LensSwitches(LensCircuits):
    """The switches of a `HookedVLM`, named as in TransformerLens."""

    def set_use_attn_result(self, use_attn_result: bool) -> None:
        """Have ``blocks.{l}.attn.hook_result`` [batch, pos, head, d_model]: what each head adds.

        Raises:
            ValueError: A norm over all heads comes before the output projection (Kosmos-2).
            TypeError: The weights cannot be read.

        Example:
            >>> from vlm_lens import HookedVLM
            >>> model = HookedVLM.from_pretrained("shapes-llava")
            >>> model.set_use_attn_result(True)
            >>> _, cache = model.run_with_cache("what color", names_filter="*.hook_result")
            >>> cache["result", 0].shape
            torch.Size([1, 3, 4, 128])
        """
        self._switch("use_attn_result", use_attn_result)

    def set_use_split_qkv_input(self, use_split_qkv_input: bool) -> None:
        """Have ``blocks.{l}.attn.hook_q_input``, ``hook_k_input`` and ``hook_v_input``.

        Each is a copy of the residual stream for each head, [batch, pos, head, d_model], before the
        norm in front of attention; of keys and values one for each head that the model has.

        Raises:
            ValueError: `set_use_attn_in` is on.
            TypeError: The weights cannot be read.
        """
        if use_split_qkv_input and self.cfg.use_attn_in:
            raise ValueError(_EXCLUSIVE.format("attn_in", "split_qkv_input"))
        self._switch("use_split_qkv_input", use_split_qkv_input)

    def set_use_attn_in(self, use_attn_in: bool) -> None:
        """Have ``blocks.{l}.attn.hook_attn_in``: one copy for each head's query, key and value.

        Raises:
            ValueError: `set_use_split_qkv_input` is on, or keys and values are shared by heads.
            TypeError: The weights cannot be read.
        """
        if use_attn_in and self.cfg.use_split_qkv_input:
            raise ValueError(_EXCLUSIVE.format("split_qkv_input", "attn_in"))
        self._switch("use_attn_in", use_attn_in)

    def set_use_hook_mlp_in(self, use_hook_mlp_in: bool) -> None:
        """Have ``blocks.{l}.hook_mlp_in``: the stream that the MLP reads, before its norm.

        It is the stream of `hook_resid_mid`; what is written here only the MLP sees.
        """
        self._switch("use_hook_mlp_in", use_hook_mlp_in)

    def _switch(self, switch: str, on: bool) -> None:
        """Add a switch's hook points to the language model's blocks, or take them away."""
        if bool(on) == getattr(self.cfg, switch):
            return
        with self._turns:
            found: dict[tuple[nn.Module, str], Any] = {}
            for block in self._text_blocks:
                found |= block.switched_taps(switch)
            for (component, name), tap in found.items():
                if on:
                    component.add_module(name, tap)
                else:
                    getattr(component, name).remove_hooks("both", including_permanent=True)
                    delattr(component, name)
            self.setup()
            setattr(self.cfg, switch, bool(on))

    def _switch_as(self, cfg: HookedVLMConfig) -> None:
        """Have the hook points that another model of this kind has."""
        for switch in sorted(set(SWITCH_OF.values())):
            self._switch(switch, getattr(cfg, switch))

    @property
    def _text_blocks(self) -> list[Any]:
        text_for(self, "hook points on demand")
        stacks = [part.module.blocks for part in parts_of(self) if part.kind == "text"]
        return [block for blocks in stacks for block in blocks]


_EXCLUSIVE = (
    "Expected one of two ways to split the input: call set_use_{}(False) before set_use_{}."
)
