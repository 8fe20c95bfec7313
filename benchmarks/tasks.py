"""What is timed: five tasks, each over Hugging Face's time without hooks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

N_NEW = 32
"""Tokens that the generation task generates."""

N_ABLATED = 8
"""Neurons of every layer of the language model that the generation task ablates."""

INNER = ("hook_attn_scores", "hook_pattern")
"""Ends of the names that "everything" leaves out: reading these turns fused attention off."""


@dataclass(frozen=True)
class Task:
    """What is timed, and the most that HookedVLM may take of Hugging Face's time for `base`."""

    what: str
    base: str = "forward"
    target: float | None = None

    def verdict(self, ratio: float) -> str:
        """Whether a ratio of HookedVLM reaches the target, where there is one."""
        return "" if self.target is None else "yes" if ratio <= self.target else "NO"


TASKS = {
    "forward": Task("forward, nothing hooked", target=1.02),
    "lm_neurons": Task("forward, keeping the language model's `mlp.hook_post`", target=1.10),
    "all_neurons": Task("forward, keeping every `mlp.hook_post`"),
    "everything": Task("forward, keeping everything", target=1.30),
    "generate": Task(
        f"{N_NEW} tokens generated, `mlp.hook_post` ablated", base="generate", target=1.10
    ),
}


def ablate(tensor: Tensor, hook: Any) -> Tensor:  # noqa: ARG001
    """The hook of the generation task: a few neurons become zero."""
    tensor[..., :N_ABLATED] = 0
    return tensor


def greedy(n_new: int) -> dict[str, Any]:
    """Options that make Hugging Face generate exactly so many tokens, greedily."""
    return {"max_new_tokens": n_new, "min_new_tokens": n_new, "do_sample": False}
