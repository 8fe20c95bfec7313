"""What is padding in bare tokens: by the rule, for each thing that a pad token can be besides."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import build_tokenizer
from vlm_lens.inputs.padding import PadToken, pad_id, padding_side


@pytest.mark.parametrize(
    ("also", "tokens", "mask"),
    [
        # A token that only pads is padding at both ends and nowhere else.
        ({}, [[0, 0, 5, 0, 6], [7, 5, 5, 6, 0]], [[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]]),
        ({}, [[0, 0], [0, 5]], [[1, 1], [0, 1]]),
        # No text starts with its end; of what follows an answer, the first one ends it.
        ({"is_eos": True}, [[0, 0, 5, 6, 0]], [[0, 0, 1, 1, 1]]),
        ({"is_eos": True}, [[0, 5, 0, 0, 0], [5, 5, 5, 5, 0]], [[0, 1, 1, 0, 0], [1] * 5]),
        ({"is_eos": True, "side": "right"}, [[5, 6, 0, 0], [5, 6, 7, 8]], [[1, 1, 0, 0], [1] * 4]),
        ({"is_eos": True, "side": "right"}, [[5, 6, 0, 0], [5, 6, 7, 0]], [[1, 1, 1, 0], [1] * 4]),
        # The last of several bos tokens starts a text, unless the longest text has none.
        ({"is_bos": True, "starts": True}, [[0, 0, 5], [0, 5, 6]], [[0, 1, 1], [1, 1, 1]]),
        ({"is_bos": True, "starts": True}, [[0, 0, 5], [7, 5, 6]], [[0, 0, 1], [1, 1, 1]]),
        ({"is_bos": True, "starts": True}, [[0, 0, 0, 5]], [[0, 0, 1, 1]]),
        ({"is_bos": True}, [[0, 0, 0, 5]], [[0, 0, 0, 1]]),
        ({"is_bos": True}, [[0, 5, 6]], [[1, 1, 1]]),
        # An unknown word may end a text, or start one that is padded behind.
        ({"is_unk": True}, [[0, 5, 0], [6, 5, 0]], [[0, 1, 1], [1, 1, 1]]),
        ({"is_unk": True, "side": "right"}, [[0, 5, 0], [6, 5, 7]], [[1, 1, 0], [1, 1, 1]]),
        # All three, as in GPT-2.
        (
            {"is_bos": True, "is_eos": True, "is_unk": True, "starts": True},
            [[0, 0, 5, 6], [0, 5, 6, 0]],
            [[0, 1, 1, 1], [1, 1, 1, 1]],
        ),
    ],
)
def test_what_is_padding(also: dict, tokens: list[list[int]], mask: list[list[int]]):
    assert PadToken(0, **also).mask(torch.tensor(tokens)).tolist() == mask


def test_the_pad_token_of_a_tokenizer():
    tokenizer = build_tokenizer()
    assert PadToken.of(tokenizer) == PadToken(0)
    tokenizer.pad_token = "<eos>"
    assert PadToken.of(tokenizer) == PadToken(2, is_eos=True)
    tokenizer.pad_token = None
    assert (pad_id(tokenizer), PadToken.of(tokenizer)) == (2, PadToken(2, is_eos=True))
    tokenizer.eos_token = None
    assert PadToken.of(tokenizer) is None


def test_a_side_counts_that_was_set_after_loading():
    tokenizer = build_tokenizer()  # made with no side, for which transformers takes the right
    assert (tokenizer.padding_side, padding_side(tokenizer)) == ("right", "left")
    tokenizer.padding_side = "left"
    assert padding_side(tokenizer) == "left"
