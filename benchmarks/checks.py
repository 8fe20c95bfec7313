"""Whether the contenders do the same work: their logits, and the tokens under the same ablation."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from benchmarks.contenders import HF, VLM_LENS, Contender


@torch.no_grad()
def check(contenders: Mapping[str, Contender]) -> dict[str, dict[str, float]]:
    """How far each task's logits are from Hugging Face's at most; 0.0 is bit-identical.

    Runs every forward of every contender once.
    """
    (logits,) = contenders[HF].runs["forward"]()
    return {
        name: {
            task: (run()[0] - logits).abs().max().item()
            for task, run in contender.runs.items()
            if task != "generate"
        }
        for name, contender in contenders.items()
    }


@torch.no_grad()
def same_tokens(contenders: Mapping[str, Contender]) -> dict[str, bool]:
    """Whether the contenders that ablate generate the tokens that HookedVLM generates."""
    ours = contenders[VLM_LENS].runs["generate"]()[0]
    return {
        name: torch.equal(contender.runs["generate"]()[0], ours)
        for name, contender in contenders.items()
        if name != HF and "generate" in contender.runs
    }
