"""The logit lens decodes as the model itself does, at every depth."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from tests.families import build
from tests.inputs.test_families import medium
from tests.tiny import Tiny
from vlm_lens import HookedVLM
from vlm_lens.analyses.logit_lens import logit_lens

DECODERS = ("llava_next", "blip2-opt", "qwen2_5_vl", "paligemma", "gemma3", "mllama", "kosmos2")
TEXT = "what color is the circle ?"


def slow(model: HookedVLM, state: torch.Tensor) -> torch.Tensor:
    """Probabilities from one position's residual stream, by the formulas, in float64."""
    norm, state = model.ln_final, state.double()
    if norm.centers:
        state = state - state.mean()
    scaled = state / (state.square().mean() + norm.eps).sqrt()
    logits = (scaled * norm.w.double() + norm.b.double()) @ model.W_U.double() + model.b_U.double()
    return logits.softmax(0)


@torch.no_grad()
def test_every_depth_is_what_the_formulas_give(tiny: Tiny):
    inputs = tiny.inputs("image")
    lens = logit_lens(tiny.model, inputs, k=3, follow=["red", 4])
    _, cache = tiny.model.run_with_cache(inputs)
    assert lens.positions == tuple(inputs.token_map[0].positions("image"))
    assert lens.depths == (0, 1, 2, 3)
    for i, name in enumerate(lens.names):
        for j, pos in enumerate(lens.positions):
            shares = slow(tiny.model, cache[name][0, pos])
            best = shares.topk(3)
            torch.testing.assert_close(
                lens.probabilities[i, j].double(), best.values, atol=1e-5, rtol=1e-4
            )
            assert lens.tokens[i, j, 0] == best.indices[0]
            red = tiny.model.to_single_token("red")
            assert float(lens.followed["red"][i, j]) == pytest.approx(float(shares[red]), abs=1e-5)
    assert lens.names[:2] == ("blocks.0.hook_resid_pre", "blocks.0.hook_resid_post")
    assert set(lens.followed) == {"red", "<image>"}


@torch.no_grad()
@pytest.mark.parametrize("name", DECODERS)
def test_the_last_depth_is_the_models_prediction(name: str):
    hf, processor = build(name)
    model = HookedVLM(hf, processor=processor)
    inputs = model.prepare(images=medium(name), text=TEXT)
    lens = logit_lens(model, inputs, positions=[-1, -2], depths=[1, 3], k=4)
    expected = model(inputs)[0, [-1, -2]].float().softmax(-1).topk(4)
    torch.testing.assert_close(lens.probabilities[1], expected.values)
    assert torch.equal(lens.tokens[1, :, 0], expected.indices[:, 0])
    assert len(lens.names) == 2


def test_a_prompt_of_a_padded_batch_is_what_it_is_alone(llava: Tiny):
    batch = llava.inputs("batch")
    alone = llava.model.prepare(images=batch.images[2], text="circle")
    one = logit_lens(llava.model, alone, positions="text")
    of_batch = logit_lens(llava.model, batch, positions="text", sample=2)
    torch.testing.assert_close(of_batch.probabilities, one.probabilities)
    assert len(of_batch.positions) == 1


def test_chunks_are_joined_in_order(llava: Tiny, monkeypatch: pytest.MonkeyPatch):
    whole = logit_lens(llava.model, llava.inputs("image"))
    monkeypatch.setattr(sys.modules["vlm_lens.analyses.logit_lens"], "_AT_ONCE", 60)
    torch.testing.assert_close(
        logit_lens(llava.model, llava.inputs("image")).probabilities, whole.probabilities
    )


def test_capped_logits_are_capped_at_all_depths(llava: Tiny, monkeypatch: pytest.MonkeyPatch):
    config = llava.hf.config.get_text_config()
    monkeypatch.setattr(config, "final_logit_softcapping", 0.5, raising=False)
    plain = logit_lens(llava.model, llava.inputs("image"))  # LLaVA passes over it

    def cap(module, arguments, output):
        output.logits = torch.tanh(output.logits / 0.5) * 0.5
        return output

    handle = llava.hf.register_forward_hook(cap)
    capped = logit_lens(llava.model, llava.inputs("image"))
    handle.remove()
    # With logits from -0.5 to 0.5 no token can be e times as probable as another one.
    most = 2.72 / llava.model.W_U.shape[1]
    assert float(plain.probabilities.max()) > most > float(capped.probabilities.max())


def test_logits_that_are_something_else_are_refused(llava: Tiny):
    handle = llava.hf.register_forward_hook(
        lambda module, arguments, output: SimpleNamespace(logits=output.logits * 2)
    )
    with pytest.raises(ValueError, match="are not what its final norm and its unembedding make"):
        logit_lens(llava.model, llava.inputs("image"))
    handle.remove()


def test_a_table_has_a_row_for_each_token(llava: Tiny):
    lens = logit_lens(llava.model, llava.inputs("image"), positions=[3, -1], k=2)
    frame = lens.to_dataframe()
    assert len(frame) == 4 * 2 * 2
    row = frame[(frame["depth"] == 2) & (frame["position"] == 3) & (frame["rank"] == 1)].iloc[0]
    assert row["token"] == lens.tokens[2, 0, 1]
    assert row["text"] == lens.words(2, 3)[1] == llava.model.to_single_str_token(int(row["token"]))
    assert row["name"] == "blocks.1.hook_resid_post"
    assert row["probability"] == pytest.approx(float(lens.probabilities[2, 0, 1]))
    assert repr(lens) == "LogitLens(2 positions at 4 depths, top 2 tokens)"


@pytest.mark.usefixtures("unchecked")
def test_refuses_what_there_is_not(llava: Tiny):
    inputs = llava.inputs("text")
    model = llava.model
    with pytest.raises(ValueError, match=r"has none: 'image'"):
        logit_lens(model, inputs)
    with pytest.raises(ValueError, match="unknown kind 'picture'"):
        logit_lens(model, inputs, positions="picture")
    with pytest.raises(IndexError, match="there is no position 99"):
        logit_lens(model, inputs, positions=[99])
    with pytest.raises(IndexError, match="there is no depth 4: expected 0"):
        logit_lens(model, inputs, positions="text", depths=[4])
    with pytest.raises(IndexError, match="there is no sample 1"):
        logit_lens(model, inputs, positions="text", sample=1)
    with pytest.raises(IndexError, match="there is no token 99"):
        logit_lens(model, inputs, positions="text", follow=[99])
    with pytest.raises(ValueError, match="at least one depth"):
        logit_lens(model, inputs, positions="text", depths=[])
    hf, processor = build("blip2-t5")
    t5 = HookedVLM(hf, processor=processor)
    with pytest.raises(ValueError, match="is an encoder with a decoder"):
        logit_lens(t5, t5.prepare(images=medium("blip2-t5"), text=TEXT))
