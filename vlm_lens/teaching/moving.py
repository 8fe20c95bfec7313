"""What each head's output moves from one picture's answer to the other's."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vlm_lens.model import HookedVLM
from vlm_lens.teaching.pairs import Pairs


@torch.no_grad()
def moved_by_head(model: HookedVLM, pairs: Pairs) -> Float[Tensor, "layer head"]:
    """Which part of the way to the clean answer each head's clean output moves the corrupted run.

    Args:
        model: The model.
        pairs: Pictures to which it gives two answers.

    Example:
        >>> from vlm_lens.teaching.pairs import make_pairs
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> moved = moved_by_head(model, make_pairs("color", n=2))
        >>> moved.shape, bool(moved[5, 3] > 0.1)
        (torch.Size([6, 4]), True)
    """
    clean = model.prepare(images=pairs.clean, text=pairs.questions)
    corrupted = model.prepare(images=pairs.corrupted, text=pairs.questions)
    logits, cache = model.run_with_cache(clean, names_filter="blocks.*.attn.hook_z")
    others = model(corrupted)
    rows = torch.arange(len(pairs.questions))
    right, wrong = logits[:, -1].argmax(-1), others[:, -1].argmax(-1)

    def ahead(values: Tensor) -> Tensor:
        return values[rows, -1, right] - values[rows, -1, wrong]

    def patched(layer: int, head: int) -> Tensor:
        def put(tensor: Tensor, hook: HookPoint) -> Tensor:
            tensor[:, :, head] = cache[str(hook.name)][:, :, head]
            return tensor

        return model.run_with_hooks(corrupted, fwd_hooks=[(f"blocks.{layer}.attn.hook_z", put)])

    way, heads = ahead(logits) - ahead(others), range(model.cfg.n_heads)
    moved = [
        [((ahead(patched(layer, head)) - ahead(others)) / way).mean() for head in heads]
        for layer in range(model.cfg.n_layers)
    ]
    return torch.tensor(moved)
