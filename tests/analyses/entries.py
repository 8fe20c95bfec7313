"""What the tests of entry scores share."""

from __future__ import annotations

from torch import Tensor

from tests.tiny import picture
from vlm_lens import Sample
from vlm_lens.analyses.entry_scores import EntryScores

Entry = tuple[str, int, int, float]
"""Hook point, position, neuron and score."""

TEXT = "what color is the red circle ? left : a blue square ."
N_POS = 14  # of TEXT, with <bos>
ASKED = Sample(images=[picture(0)], text="what color is the circle ?")
MODULES = {  # of a Llama block, and the hook points that stand for them
    "self_attn.q_proj": "attn.hook_q",
    "self_attn.k_proj": "attn.hook_k",
    "self_attn.v_proj": "attn.hook_v",
    "self_attn.o_proj": "hook_attn_out",
    "post_attention_layernorm": "ln2.hook_normalized",
    "mlp.gate_proj": "mlp.hook_pre",
    "mlp.act_fn": "mlp.hook_act",
    "mlp.up_proj": "mlp.hook_pre_linear",
    "mlp.down_proj": "hook_mlp_out",
}


def listed(scores: EntryScores) -> list[Entry]:
    names = list(scores.sizes)
    columns = (scores.name_index, scores.position, scores.index, scores.score)
    return [(names[n], p, i, s) for n, p, i, s in zip(*map(Tensor.tolist, columns), strict=True)]


def by_entry(entries: list[Entry]) -> dict[tuple[str, int, int], float]:
    return {entry[:3]: entry[3] for entry in entries}


def positions(scores: EntryScores) -> set[int]:
    return set(scores.position.tolist())
