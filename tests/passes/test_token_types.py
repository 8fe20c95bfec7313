"""Names of token types, and which positions they mean."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.statistics.slow import built, samples_of
from vlm_lens.inputs.token_types import KINDS, parse_types
from vlm_lens.passes.answers import Answers
from vlm_lens.passes.batch import make_batch
from vlm_lens.passes.forwards import forward
from vlm_lens.passes.positions import Positions
from vlm_lens.statistics import TokenType, collect
from vlm_lens.statistics.attention import pattern_of, received

WORDS = ["image", "audio", "text", "special", "prompt", "answer", "any"]


@given(st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=3), min_size=1, max_size=3))
def test_is_what_its_words_say(alternatives: list[list[str]]) -> None:
    name = "+".join(" ".join(words) for words in alternatives)
    fitting = [
        {kind for kind in KINDS if all(word in (*kind, "any") for word in words)}
        for words in alternatives
    ]
    if not all(fitting):
        with pytest.raises(ValueError, match="no position is all of"):
            TokenType.parse(name)
    else:
        assert TokenType.parse(name).kinds == frozenset().union(*fitting)


@pytest.mark.parametrize("name", ["", "text+", "+", "padding", "Image", "answer_text"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot read the token type"):
        TokenType.parse(name)


def test_parts_hold_each_position_of_their_types_once() -> None:
    batch = make_batch(built("llava"), samples_of("llava")[:5], Answers("own", 4))
    shape = batch.real.shape
    name = "blocks.0.mlp.hook_act"
    types = tuple(parse_types(["text", "answer", "image", "any"]))
    parts = Positions(batch).of(types, name, shape)
    rows = torch.cat([part.rows for part in parts])
    assert sorted(rows.tolist()) == batch.real.flatten().nonzero()[:, 0].tolist()
    for part in parts:
        for row, ordinal in zip(part.rows.tolist(), part.ordinals.tolist(), strict=True):
            sample, position = divmod(row, shape[1])
            before = batch.real[sample, :position].sum()
            assert ordinal == before
        every = torch.arange(shape[0] * shape[1])
        assert torch.equal(torch.cat([every[span] for span in part.spans]), part.rows)
        assert [len(every[span]) for span in part.spans] == part.lengths
        assert [int(every[span][0]) // shape[1] for span in part.spans] == part.samples


def test_padding_gives_no_attention() -> None:
    torch.manual_seed(0)
    pattern = torch.rand(2, 3, 4, 4).softmax(-1)
    real = torch.tensor([[True] * 4, [False, True, True, True]])
    expected = torch.stack([pattern[0].mean(0).sum(0), pattern[1].mean(0)[1:].sum(0)])
    pattern[1, :, 0] = torch.nan  # as softmax gives it where everything is masked
    torch.testing.assert_close(received(pattern, real), expected)


def test_no_batch_falls_apart_for_its_padding(monkeypatch) -> None:
    """Samples go one by one only where one of them is bad."""
    seen = []
    monkeypatch.setattr(
        "vlm_lens.passes.watch.forward",
        lambda model, batch: (seen.append(batch.numbers), forward(model, batch)),
    )
    options = {"sites": "blocks.*.mlp.hook_act", "attention": True}
    collect(built("llava"), samples_of("llava"), **options)
    assert seen == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize(
    "name", ["hook_embed", "blocks.0.hook_resid_pre", "blocks.0.attn.hook_z", "projector.hook_out"]
)
def test_only_what_comes_after_attention_is_weighed(name: str) -> None:
    with pytest.raises(ValueError, match="does not come after an attention"):
        pattern_of(name, built("llava").hook_dict)
