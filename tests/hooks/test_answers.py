"""What a hook is, and what it may answer: the same rules at every hook point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from tests.conftest import assert_no_hooks
from tests.tiny import Tiny, build_tiny
from vlm_lens import HookedVLM
from vlm_lens.hooks import HookNameError

WRONG: dict[str, tuple[Callable[[torch.Tensor], Any], type[Exception], str]] = {
    "a number": (lambda x: 0.0, TypeError, "got float"),
    "a bool": (lambda x: True, TypeError, "got bool"),
    "numpy": (lambda x: x.detach().numpy(), TypeError, "got ndarray"),
    "a mask": (lambda x: x > 0, TypeError, "torch.bool tensor"),
    "complex": (lambda x: x + 0j, TypeError, "torch.complex64 tensor"),
    "two": (lambda x: (x, x), TypeError, "got tuple"),
    "fewer": (lambda x: x[:, :0], ValueError, r"of shape \[.*got \[1, 0"),
    "one of many": (lambda x: x[..., :1], ValueError, "of shape"),
    "without the batch": (lambda x: x[0], ValueError, "of shape"),
    "elsewhere": (lambda x: x.to("meta"), ValueError, "on cpu.*got meta"),
}
ONE_OF_EACH = [
    *("hook_embed", "ln_final.hook_normalized", "ln_final.hook_scale"),
    *("projector.hook_in", "projector.mlp.hook_post", "projector.hook_out"),
    *("vision_encoder.hook_out", "vision_encoder.blocks.1.attn.hook_pattern"),
    *(
        f"blocks.1.{point}"
        for point in (
            *("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out"),
            *("hook_mlp_out", "mlp.hook_pre", "mlp.hook_act", "mlp.hook_post"),
            *("attn.hook_q", "attn.hook_rot_k", "attn.hook_z", "attn.hook_attn_scores"),
        )
    ),
]


@pytest.fixture(scope="module")
def half() -> Tiny:
    return build_tiny("clip-llama", dtype=torch.bfloat16)


@pytest.mark.sampled
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_answer_is_one_error_that_names_the_hook(llava: Tiny, wrong: str, gradients: bool):
    answer, error, message = WRONG[wrong]
    inputs = llava.inputs("image")
    for name in ONE_OF_EACH:
        if wrong == "one of many" and name.endswith("hook_scale"):
            continue  # which has one entry a position
        hook = (name, lambda x, hook: answer(x))
        with torch.set_grad_enabled(gradients), pytest.raises(error, match=message) as raised:
            llava.model.run_with_hooks(inputs, fwd_hooks=[hook])
        assert f"the hook at {name!r}" in str(raised.value)
    assert_no_hooks(llava.model)


@pytest.mark.full
def test_an_answer_is_cast_to_the_dtype_of_its_site(half: Tiny):
    """As that of a float32 SAE in a bfloat16 model."""
    inputs = half.inputs("image").to(torch.bfloat16)
    with torch.no_grad():
        right = half.model.run_with_hooks(inputs, fwd_hooks=[("*", lambda x, hook: x.clone())])
        for dtype in (torch.float32, torch.float64):
            hook = ("*", lambda x, hook, dtype=dtype: x.to(dtype))
            assert torch.equal(half.model.run_with_hooks(inputs, fwd_hooks=[hook]), right)
    for name in half.model.hook_dict:
        hook = (name, lambda x, hook: x.float() * 1.5)
        logits = half.model.run_with_hooks(inputs, fwd_hooks=[hook])
        assert logits.dtype == torch.bfloat16, name


def test_gradients_that_a_hook_answers_are_held_to_the_same_rules(llava: Tiny):
    inputs = llava.inputs("image")
    for answer in (lambda g: g * 0, lambda g: (g * 0,)):
        hook = ("blocks.0.hook_resid_post", lambda g, hook, answer=answer: answer(g))
        with llava.model.hooks(bwd_hooks=[hook]):
            llava.model(inputs, return_type="loss").backward()
        assert not llava.hf.model.language_model.layers[0].mlp.up_proj.weight.grad.any()
    hook = ("blocks.0.hook_resid_post", lambda g, hook: g[:, :1])
    with llava.model.hooks(bwd_hooks=[hook]):
        loss = llava.model(inputs, return_type="loss")
        with pytest.raises(ValueError, match="the hook at 'blocks.0.hook_resid_post'"):
            loss.backward()
    llava.hf.zero_grad()


NO_HOOKS = {
    "a pair without a list": (
        ("hook_embed", print),
        r"list of pairs.*One pair has to be in a list",
    ),
    "a name": ("hook_embed", "list of pairs"),
    "a mapping": ({"hook_embed": print}, "list of pairs"),
    "a function": ([print], "list of pairs"),
    "three things": ([("hook_embed", print, "fwd")], "list of pairs"),
    "a pair the other way round": (
        [(print, "hook_embed")],
        r"\(name, function\) .*got \(function, name\)",
    ),
    "no function": ([("hook_embed", 3)], "for 'hook_embed', got 3"),
    "a function without hook": ([("hook_embed", lambda t: t)], r"<lambda>\(t\) cannot be called"),
    "a second argument of another name": (
        [("hook_*", lambda t, point: t)],
        r"for 'hook_\*', but <lambda>\(t, point\) cannot",
    ),
}


@pytest.mark.parametrize("direction", ["fwd_hooks", "bwd_hooks"])
@pytest.mark.parametrize("wrong", NO_HOOKS)
@pytest.mark.usefixtures("unchecked")
def test_what_is_no_hook_is_refused_before_any_is_set(llava: Tiny, wrong: str, direction: str):
    hooks, message = NO_HOOKS[wrong]
    given: dict[str, Any] = {direction: hooks}
    with pytest.raises(TypeError, match=message):
        llava.model.run_with_hooks("red", **given)
    with pytest.raises(TypeError, match=message):
        llava.model.hooks(**given).__enter__()
    assert_no_hooks(llava.model)


def test_a_hook_at_no_point_is_refused(llava: Tiny):
    """It would change nothing, without a word."""

    def read(tensor: Tensor, hook: HookPoint) -> None: ...

    for hook in ([("hook_embed", read), ([], read)], [((), read)]):
        with pytest.raises(HookNameError, match="names of hook points to set a hook at"):
            llava.model.run_with_hooks("red", fwd_hooks=hook)
    with pytest.raises(HookNameError, match="names of hook points"):
        llava.model.add_hook([], read)
    assert_no_hooks(llava.model)


def test_single_hook_points_refuse_what_is_no_hook(llava: Tiny):
    for add in (
        llava.model.hook_dict["hook_embed"].add_hook,
        llava.model.hook_embed.add_perma_hook,
    ):
        with pytest.raises(TypeError, match="for 'hook_embed', got None"):
            add(None)
    with pytest.raises(TypeError, match="cannot be called as fn"):
        llava.model.add_hook("hook_embed", lambda t: t)
    assert_no_hooks(llava.model)


def test_hooks_may_be_a_generator(shapes: HookedVLM):
    seen: list[str] = []
    hooks = ((name, lambda t, hook: seen.append(hook.name)) for name in ["hook_embed"])
    shapes.run_with_hooks("what color", fwd_hooks=hooks)
    assert seen == ["hook_embed"]


@pytest.mark.full
@torch.no_grad()
def test_writing_in_place_is_answering(llava: Tiny):
    """At every hook point, and only there: what a cache kept of others is what it is anyway."""
    model, inputs = llava.model, llava.inputs("image")
    model.set_use_hook_mlp_in(True)
    try:
        for name in ("blocks.1.hook_mlp_in", *set(ONE_OF_EACH) - {"vision_encoder.hook_out"}):
            _write_in_place(model, inputs, name)
    finally:
        model.set_use_hook_mlp_in(False)


def _write_in_place(model: HookedVLM, inputs: Any, name: str) -> None:
    def write(tensor: torch.Tensor, hook: Any) -> torch.Tensor:
        return tensor.mul_(0.5)

    expected = model.run_with_hooks(inputs, fwd_hooks=[(name, lambda x, hook: x * 0.5)])
    before = [known for known in model.hook_dict if known != name]
    with model.hooks([(name, write)]):
        found, cache = model.run_with_cache(inputs, names_filter=before)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=name)
    answered = [(name, lambda x, hook: x * 0.5)]
    with model.hooks(answered):
        _, right = model.run_with_cache(inputs, names_filter=before)
    touched = [known for known in before if not torch.allclose(cache[known], right[known])]
    assert not touched, f"{touched} beside {name}"
