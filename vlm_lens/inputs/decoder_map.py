"""What each position of a decoder beside an encoder is."""

from __future__ import annotations

from collections.abc import Sequence

from vlm_lens.inputs.token_kinds import Modality
from vlm_lens.inputs.token_map import TokenMap


def decoder_map(
    tokens: Sequence[str], *, special_tokens: frozenset[str], n_padding: int = 0
) -> TokenMap:
    """The map of a decoder's own sequence: padding, a token to start with, and the answer.

    Args:
        tokens: All of them as text.
        special_tokens: The texts of the tokenizer's special tokens.
        n_padding: How many are padding, in front.

    Example:
        >>> found = decoder_map(["<pad>", "red", "</s>"], special_tokens=frozenset({"</s>"}))
        >>> found.modality, found.role
        (['special', 'text', 'special'], ['prompt', 'answer', 'answer'])
    """
    front = n_padding + 1
    padding: list[Modality] = ["padding"] * n_padding
    start = TokenMap(
        tokens=list(tokens[:front]),
        modality=[*padding, "special"],
        role=["prompt"] * front,
        image_index=[-1] * front,
        layouts=[],
        special_tokens=special_tokens,
    )
    return start.extend(tokens[front:])
