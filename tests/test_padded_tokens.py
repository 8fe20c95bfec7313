"""Bare tokens of several texts: each is what it is alone, whatever calls the model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformer_lens import patching

from tests.families import MODELS, build
from tests.families.base import picture
from tests.geometry.families import placeholder
from tests.tiny import Tiny, build_tiny
from vlm_lens import HookedVLM

SHORT, LONG = "red circle", "is the square red ? what color is the circle left ?"
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
NEEDS_A_PICTURE = ("instructblip-llama", "instructblip-t5", "blip2-opt", "blip2-t5", "kosmos2")
BUILT: dict[str, HookedVLM] = {}


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def built(name: str) -> HookedVLM:
    if name not in BUILT:
        hf, processor = build(name)
        BUILT[name] = HookedVLM(hf, processor=processor)
    return BUILT[name]


@pytest.mark.parametrize("name", [name for name in MODELS if name not in (*NEEDS_A_PICTURE, "t5")])
def test_padded_tokens_are_each_text_alone(name: str):
    model = built(name)
    alone, n = model(SHORT)[0], model.to_tokens(SHORT).shape[1]
    left = model.to_tokens([SHORT, LONG])
    right = model.to_tokens([SHORT, LONG], padding_side="right")
    logits, cache = model.run_with_cache(left, names_filter="blocks.0.hook_resid_post")
    torch.testing.assert_close(logits[0, -n:], alone, **CLOSE)
    torch.testing.assert_close(model(left[:1])[0, -n:], alone, **CLOSE)
    torch.testing.assert_close(model({"input_ids": left})[0, -n:], alone, **CLOSE)
    torch.testing.assert_close(model(right)[0, :n], alone, **CLOSE)
    torch.testing.assert_close(model([SHORT, LONG], padding_side="right")[0, :n], alone, **CLOSE)
    assert len(cache.real(("resid_post", 0))) == n + left.shape[1]
    each = [model(text, "loss", loss_per_token=True).sum() for text in (SHORT, LONG)]
    for tokens in (left, right):
        found = model(tokens, "loss", loss_per_token=True).sum(1)
        torch.testing.assert_close(found, torch.stack(each), **CLOSE)
    options: Any = {"max_new_tokens": 3, "min_new_tokens": 3, "return_type": "tokens"}
    answer = model.generate(left, **options)[0, left.shape[1] :]
    assert torch.equal(answer, model.generate(SHORT, **options)[0, n:])
    if name != "paligemma":  # reads a text both ways with no mask, and one way with one
        theirs = model.hf_model.generate(
            input_ids=left, max_new_tokens=3, min_new_tokens=3, do_sample=False
        )
        assert torch.equal(answer, theirs[0, left.shape[1] :])
    with pytest.raises(ValueError, match="padded on the left"):
        model.generate(right)


@pytest.mark.parametrize("name", NEEDS_A_PICTURE)
def test_padded_tokens_beside_pictures(name: str):
    model, here = built(name), placeholder(name)
    texts, images = [f"{here} {SHORT}", f"{here} {LONG}"], [picture(0), picture(1)]
    inputs = model.prepare(images=images, text=texts)
    bare = {key: value for key, value in inputs.items() if key != "attention_mask"}
    alone = model.prepare(images=images[0], text=texts[0])
    torch.testing.assert_close(model(bare)[0, -1], model(alone)[0, -1], **CLOSE)
    assert torch.equal(model(bare), model(inputs))
    assert model.generate(bare, max_new_tokens=3) == model.generate(inputs, max_new_tokens=3)


def changed(llava: Tiny, **tokens: str | None) -> HookedVLM:
    """The same model, with other special tokens."""
    processor = copy.deepcopy(llava.processor)
    for name, token in tokens.items():
        setattr(processor.tokenizer, name, token)
    return HookedVLM(llava.hf, processor=processor)


@pytest.mark.parametrize("pad", ["<eos>", "<bos>", "<unk>", None])
@pytest.mark.parametrize("bos", [True, False])
def test_a_pad_token_that_means_something_else_too(llava: Tiny, pad: str | None, bos: bool):
    """Or none at all, for which the eos token stands in."""
    model = changed(llava, pad_token=pad)
    model.cfg.default_prepend_bos = bos
    tokens, n = model.to_tokens([SHORT, LONG]), model.to_tokens(SHORT).shape[1]
    alone = model(SHORT)
    torch.testing.assert_close(model(tokens)[0, -n:], alone[0], **CLOSE)
    text = model.generate(SHORT, max_new_tokens=3)
    assert model.generate(tokens, max_new_tokens=3)[0] == text
    assert torch.equal(model(model.to_tokens(SHORT)), alone)


def test_tokens_that_do_not_show_their_padding_are_refused(llava: Tiny):
    model = changed(llava, pad_token="<unk>")
    with pytest.raises(ValueError, match="'<unk>' does, .* pass the texts themselves"):
        model.to_tokens(["zebra", LONG], prepend_bos=False)
    assert model(["zebra", LONG], prepend_bos=False).shape[0] == 2
    model = changed(llava, pad_token=None, eos_token=None)
    with pytest.raises(ValueError, match="neither a pad nor an eos token: set"):
        model.to_tokens([SHORT, LONG])
    assert model.to_tokens([SHORT, "blue square"]).shape[0] == 2


def test_without_a_processor_the_configuration_names_the_pad_token(llava: Tiny):
    tokens = llava.model.to_tokens([SHORT, LONG])
    assert torch.equal(HookedVLM(llava.hf)(tokens), llava.model(tokens))


def test_a_mask_of_ones_own_counts(llava: Tiny):
    model, tokens = llava.model, llava.model.to_tokens([SHORT, LONG])
    ones = torch.ones_like(tokens)
    expected = llava.hf(input_ids=tokens).logits
    for found in (
        model(tokens, attention_mask=ones),
        model({"input_ids": tokens, "attention_mask": ones}),
        model(tokens, attention_mask=None),
    ):
        torch.testing.assert_close(found, expected, **CLOSE)
    holes = ones.clone()
    holes[1, 3] = 0
    given = {"input_ids": tokens, "attention_mask": holes}
    logits, cache = model.run_with_cache(given)
    assert torch.equal(logits, llava.hf(**given).logits)
    assert (cache["pattern", 1][1, :, 4:, 3] == 0).all()
    torch.testing.assert_close(cache["pattern", 1][1].sum(-1), torch.ones(4, tokens.shape[1]))
    assert len(cache.real(("resid_pre", 0))) == tokens.numel() - 1


def test_without_padding_the_call_is_hugging_faces_own(llava: Tiny):
    tokens = llava.model.to_tokens(LONG)
    assert torch.equal(llava.model(tokens), llava.hf(input_ids=tokens).logits)
    tokens[0, 3] = 0  # a pad token that stands for nothing: in `generate` it is left out
    assert torch.equal(llava.model(tokens), llava.hf(input_ids=tokens).logits)
    theirs = llava.hf.generate(input_ids=tokens, max_new_tokens=3, do_sample=False)
    ours = llava.model.generate(tokens, max_new_tokens=3, return_type="tokens")
    assert torch.equal(ours, theirs)


def test_patching_leaves_padding_out(llava: Tiny):
    model = llava.model
    clean, given = (model.to_tokens([SHORT, f"{LONG} {end}"]) for end in ("red", "two"))
    _, cache = model.run_with_cache(clean)

    def metric(logits):
        return logits[0, -1, 8]

    patched = patching.get_act_patch_resid_pre(model, given, cache, metric)
    torch.testing.assert_close(
        patched, torch.full_like(patched, float(metric(model(SHORT)))), **CLOSE
    )


def test_padding_side_and_bos_count_wherever_they_are_set():
    model = build_tiny("clip-qwen2").model
    left, bos = model.to_tokens([SHORT, LONG]), model.tokenizer.bos_token_id
    assert left[0, 0] == 0
    assert model.cfg.default_prepend_bos
    model.tokenizer.init_kwargs["padding_side"] = "left"  # as most processors of such models
    right = model.to_tokens([SHORT, LONG])
    assert torch.equal(right, model.to_tokens([SHORT, LONG], padding_side="right"))
    assert not torch.equal(left, right)
    torch.testing.assert_close(model([SHORT, LONG])[0, :3], model(SHORT)[0], **CLOSE)
    assert model.generate([SHORT, LONG], max_new_tokens=3)[0] == model.generate(
        SHORT, max_new_tokens=3
    )
    with pytest.raises(ValueError, match="'left' or 'right', got 'centre'"):
        model.to_tokens([SHORT, LONG], padding_side="centre")
    model.cfg.default_prepend_bos = False
    assert bos not in model.to_tokens([SHORT, LONG])
    assert torch.equal(model(SHORT), model(SHORT, prepend_bos=False))
    assert bos not in copy.deepcopy(model).to_tokens(SHORT)
    assert model.to_tokens(SHORT, prepend_bos=True)[0, 0] == bos


def test_a_bos_that_the_tokenizer_has_not_is_refused(llava: Tiny):
    model = changed(llava, bos_token=None)
    assert model.cfg.default_prepend_bos is False
    with pytest.raises(ValueError, match="has none: leave prepend_bos out"):
        model.to_tokens(SHORT, prepend_bos=True)


def test_whether_texts_start_with_bos_is_set_on_loading():
    model = HookedVLM.from_pretrained("shapes-llava", default_prepend_bos=False)
    assert model.tokenizer.bos_token_id not in model.to_tokens(SHORT)


def test_padding_behind_a_decoders_tokens_is_no_answer():
    model, here = built("instructblip-t5"), placeholder("instructblip-t5")
    inputs = model.prepare(images=[picture(0)] * 2, text=[f"{here} red", f"{here} two"])
    tokens = torch.tensor([[0, 11, 0, 0], [0, 11, 12, 13]])  # T5 starts with its pad token
    each = model({**inputs, "decoder_input_ids": tokens}, "loss", loss_per_token=True)
    assert (each != 0).tolist() == [[True, False, False], [True, True, True]]


@pytest.mark.parametrize(
    "name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl"]
)
def test_a_forgotten_video_is_refused_and_no_placeholder_is_a_target(name: str):
    model = built(name)
    tokens = model.to_tokens(f"red {model.processor.video_token} circle")
    with pytest.raises(ValueError, match="1 video positions but no video came with them"):
        model(tokens)
    with pytest.raises(ValueError, match="1 video positions"):
        model.generate(tokens)
    from vlm_lens.loss import next_tokens

    targets, scored = next_tokens({"input_ids": tokens}, tokens, model.cfg)
    assert model.cfg.video_token_id in targets
    assert model.cfg.video_token_id not in targets[scored]
