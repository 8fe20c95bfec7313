"""Keywords: what nobody knows is refused with the nearest names; what Hugging Face knows works."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.test_families import Built
from tests.test_families import family_with_text as family  # noqa: F401 - a fixture
from tests.tiny import Tiny
from vlm_lens import HookedVLM

CALLS: dict[str, tuple[Callable[..., Any], str, str]] = {
    "forward": (lambda m, x, **bad: m(x, **bad), "retrun_type", "return_type"),
    "a mapping": (lambda m, x, **bad: m({**x, **bad}), "atention_mask", "attention_mask"),
    "run_with_hooks": (lambda m, x, **bad: m.run_with_hooks(x, **bad), "fwd_hook", "fwd_hooks"),
    "run_with_cache": (lambda m, x, **bad: m.run_with_cache(x, **bad), "name_filter", "names_filt"),
    "hooks": (lambda m, x, **bad: m.hooks(**bad).__enter__(), "bwd_hook", "bwd_hooks"),
    "add_hook": (lambda m, x, **bad: m.add_hook("hook_embed", print, **bad), "direct", "dir"),
    "generate": (lambda m, x, **bad: m.generate(x, **bad), "max_tokens", "max_new_tokens"),
    "generate_stream": (lambda m, x, **bad: m.generate_stream(x, **bad), "temprature", "temperatu"),
    "generate_with_cache": (
        lambda m, x, **bad: m.generate_with_cache(x, names_filter="*", **bad),
        "do_smaple",
        "do_sample",
    ),
    "prepare": (lambda m, x, **bad: m.prepare(text="red", **bad), "image", "images"),
    "to_tokens": (lambda m, x, **bad: m.to_tokens("red", **bad), "prepend_boss", "prepend_bos"),
    "to_str_tokens": (lambda m, x, **bad: m.to_str_tokens("red", **bad), "padding", "padding_side"),
    "input_to_embed": (lambda m, x, **bad: m.input_to_embed(x, **bad), "postion_ids", "position_i"),
    "verify": (lambda m, x, **bad: m.verify(**bad), "input", "inputs"),
    "from_pretrained": (
        lambda m, x, **bad: HookedVLM.from_pretrained("shapes-llava", **bad),
        "devise_map",
        "device_map",
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_keyword_that_nobody_knows_is_refused_with_the_nearest(llava: Tiny, call: str):
    run, wrong, nearest = CALLS[call]
    seen: list[str] = []
    handle = llava.hf.register_forward_pre_hook(lambda *_: seen.append("ran"))
    try:
        with pytest.raises(TypeError, match=f"unexpected keyword '{wrong}'. Nearest: .*{nearest}"):
            run(llava.model, llava.inputs("text"), **{wrong: None})
    finally:
        handle.remove()
    assert not seen


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("past_kv_cache", "past_key_values="),
        ("freq_penalty", "repetition_penalty="),
        ("return_cache", "generate_with_cache"),
        ("fold_ln", "nothing, since weights are never converted"),
    ],
)
def test_an_option_of_transformer_lens_that_is_absent_says_what_there_is(
    llava: Tiny, name: str, instead: str
):
    for call in ("forward", "generate"):
        with pytest.raises(TypeError, match=f"{call}.* '{name}'. In its place there is {instead}"):
            getattr(llava.model, call)(llava.inputs("text"), **{name: None})


@torch.no_grad()
def test_what_a_processor_returns_goes_in_by_keyword(family: Built):  # noqa: F811
    """As in Hugging Face: `model(**processor(...))`, in every call that runs the model."""
    inputs, model = family.inputs("image"), family.model
    expected = family.hf(**inputs).logits
    assert torch.equal(model(**inputs), expected)
    assert torch.equal(model(**inputs, return_dict=True, output_hidden_states=True), expected)
    assert torch.equal(model.run_with_hooks(**inputs), expected)
    name = next(
        name for name in model.hook_dict if name.endswith(("projector.hook_out", "mlp_out"))
    )
    logits, cache = model.run_with_cache(**inputs, names_filter=name)
    assert torch.equal(logits, expected)
    assert name in cache


@torch.no_grad()
def test_a_keyword_for_the_text_model_reaches_it(family: Built):  # noqa: F811
    """What a family's own forward does not name, but hands on to its text model, is known."""
    logits = family.model(**family.inputs("image"), use_cache=False)
    assert torch.equal(logits, family.hf(**family.inputs("image")).logits)


def test_one_input_is_needed_and_no_two(llava: Tiny):
    inputs = llava.inputs("text")
    with pytest.raises(TypeError, match="Expected an input: what model.prepare"):
        llava.model()
    with pytest.raises(TypeError, match="an input or input_ids, got both"):
        llava.model(inputs, input_ids=inputs.input_ids)


def test_labels_give_hugging_faces_loss(llava: Tiny):
    inputs = llava.inputs("text")
    labels = inputs.input_ids.masked_fill(inputs.input_ids == 5, -100)
    expected = llava.hf(**inputs, labels=labels).loss
    assert torch.equal(llava.model(inputs, "loss", labels=labels), expected)
    assert torch.equal(llava.model(**inputs, labels=labels, return_type="both")[1], expected)
    with pytest.raises(ValueError, match="leave out loss_per_token=True"):
        llava.model(inputs, "loss", labels=labels, loss_per_token=True)


@pytest.mark.parametrize("kept", [1, torch.tensor([0])])
def test_a_loss_needs_all_logits(llava: Tiny, kept: Any):
    inputs = llava.inputs("text")
    assert llava.model(inputs, logits_to_keep=kept).shape[1] == 1
    with pytest.raises(ValueError, match="logits_to_keep=.* leave it out"):
        llava.model(inputs, "loss", logits_to_keep=kept)


@pytest.mark.parametrize("rows", [[[5, 6]], [5, 6], torch.tensor([5, 6])])
def test_what_a_processor_returns_without_tensors_says_so(llava: Tiny, rows: Any):
    mask = {"attention_mask": [[1, 1]]}
    for given in ({"input_ids": rows}, {"input_ids": rows, **mask}):
        with pytest.raises(TypeError, match='input_ids to be a tensor.*return_tensors="pt"'):
            llava.model(**given)
        with pytest.raises(TypeError, match='return_tensors="pt"'):
            llava.model.generate(**given)


@pytest.mark.parametrize("option", [{"prepend_bos": True}, {"padding_side": "right"}])
def test_how_texts_become_tokens_is_refused_where_there_are_tokens(llava: Tiny, option: Any):
    model, inputs = llava.model, llava.inputs("text")
    for given in (inputs, dict(inputs), inputs["input_ids"], inputs["input_ids"].tolist()):
        with pytest.raises(TypeError, match=f"raw text with {next(iter(option))}="):
            model(given, **option)
    with pytest.raises(TypeError, match="raw text with"):
        model(**inputs, **option)
    assert torch.equal(model(inputs, prepend_bos=False), model(inputs))
    model("red", **option)
