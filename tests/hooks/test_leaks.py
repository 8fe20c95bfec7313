"""Hooks are checked before they are set, gone after the run, and never silent."""

from __future__ import annotations

import warnings

import pytest
import torch

from tests.conftest import assert_no_hooks
from tests.tiny import Tiny
from vlm_lens import HookedVLM
from vlm_lens.hooked_root import HookNeverFiredWarning
from vlm_lens.hooks import HookNameError

PLACES = [
    "blocks.1.mlp.hook_post",
    "blocks.1.hook_resid_mid",
    "blocks.1.attn.hook_pattern",
    "blocks.1.attn.hook_rot_q",
    "ln_final.hook_scale",
    "vision_encoder.blocks.0.attn.hook_attn_scores",
    "projector.hook_out",
]


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_after_an_exception_in_a_hook(llava: Tiny, name: str, error):
    def fail(tensor, hook):
        raise error

    inputs = llava.inputs("image")
    clean = llava.hf(**inputs).logits
    for run in (llava.model.run_with_hooks, llava.model.generate):
        with pytest.raises(error), llava.model.hooks([(name, fail)]):
            run(inputs)
        assert_no_hooks(llava.model)
    with pytest.raises(error), llava.model.hooks([(name, fail)]):
        llava.model.run_with_cache(inputs)
    assert_no_hooks(llava.model)
    assert torch.equal(llava.hf(**inputs).logits, clean)


def test_nothing_is_left_after_a_run_or_a_generation(llava: Tiny):
    inputs = llava.inputs("image")
    llava.model.run_with_cache(inputs, names_filter="*")
    llava.model.generate_with_cache(inputs, names_filter="*", max_new_tokens=3)
    assert_no_hooks(llava.model)


def test_an_unknown_name_is_refused_before_any_hook_is_set(llava: Tiny):
    seen = []
    hooks = [
        ("blocks.0.hook_mlp_out", lambda t, hook: seen.append(1)),
        ("blocks.9.hook_mlp_out", print),
    ]
    with pytest.raises(HookNameError, match="layers 0 to 2, so there is no layer 9"):
        llava.model.run_with_hooks(llava.inputs("text"), fwd_hooks=hooks)
    with pytest.raises(HookNameError, match="glob"):
        llava.model.run_with_cache(llava.inputs("text"), names_filter="block.*")
    with pytest.raises(HookNameError):
        llava.model.add_hook("hook_embeds", print)
    with pytest.raises(HookNameError):
        llava.model.add_caching_hooks("hook_embeds")
    assert not seen
    assert_no_hooks(llava.model)


def test_hooks_stay_inside_their_context_and_contexts_nest(llava: Tiny):
    inputs, model = llava.inputs("text"), llava.model
    calls = []
    outer = ("blocks.0.hook_mlp_out", lambda t, hook: calls.append("outer"))
    inner = ("blocks.0.hook_mlp_out", lambda t, hook: calls.append("inner"))
    with model.hooks([outer]):
        with model.hooks([inner]):
            model(inputs)
        model(inputs)
    model(inputs)
    assert calls == ["outer", "inner", "outer"]


def test_added_hooks_stay_until_reset_and_permanent_ones_longer(llava: Tiny):
    inputs, model = llava.inputs("text"), llava.model
    calls = []
    model.add_hook("blocks.*.hook_mlp_out", lambda t, hook: calls.append(hook.name))
    model.add_perma_hook("hook_embed", lambda t, hook: calls.append("permanent"))
    with model.hooks([("blocks.1.hook_attn_out", lambda t, hook: None)]):
        model(inputs)
    model(inputs)
    assert len(calls) == 2 * 4
    model.reset_hooks()
    model(inputs)
    assert calls[8:] == ["permanent"]
    model.reset_hooks(including_permanent=True)
    assert_no_hooks(model)


def test_add_caching_hooks_keeps_globs(llava: Tiny):
    cache = llava.model.add_caching_hooks("blocks.*.hook_resid_post")
    llava.model(llava.inputs("text"))
    llava.model.reset_hooks()
    assert list(cache) == [f"blocks.{layer}.hook_resid_post" for layer in range(3)]


def test_a_hook_that_never_fires_is_a_warning(llava: Tiny):
    hooks = [("projector.hook_out", lambda t, hook: None)]
    with pytest.warns(
        HookNeverFiredWarning, match="1 hooked points never fired: projector.hook_out"
    ):
        llava.model.run_with_hooks(llava.inputs("text"), fwd_hooks=hooks)
    with pytest.warns(HookNeverFiredWarning, match="and 48 more"):
        llava.model.run_with_cache(llava.inputs("text"), names_filter="vision_encoder.*")
    with llava.model.hooks(hooks):
        pass  # nothing ran, so nothing was silent


def test_a_filter_of_which_something_fired_is_no_warning(llava: Tiny):
    """Patterns of a tower without an image are no surprise; a name that was given is."""
    model, inputs = llava.model, llava.inputs("text")

    def is_pattern(name: str) -> bool:
        return name.endswith("hook_pattern")

    def read(tensor, hook):
        assert hook.layer() in range(3)

    for names in (is_pattern, "*.hook_pattern"):
        with warnings.catch_warnings():
            warnings.simplefilter("error", HookNeverFiredWarning)
            model.run_with_hooks(inputs, fwd_hooks=[(names, read)])
            model.run_with_cache(inputs, names_filter=names)
            model.generate_with_cache(inputs, names_filter=names, max_new_tokens=2)
    absent = "vision_encoder.blocks.0.attn.hook_pattern"
    with pytest.warns(HookNeverFiredWarning, match=f"1 hooked points never fired: {absent}"):
        model.run_with_cache(inputs, names_filter=["*.hook_pattern", absent])


def test_everything_on_text_alone_is_no_warning(llava: Tiny, recwarn: pytest.WarningsRecorder):
    _, cache = llava.model.run_with_cache(llava.inputs("text"))
    assert not [w for w in recwarn if w.category is HookNeverFiredWarning]
    assert not any(name.startswith("vision_encoder") for name in cache)


def test_hooks_run_in_order_and_see_what_the_one_before_returned(llava: Tiny):
    seen = []
    hooks = [
        ("blocks.0.hook_mlp_out", lambda t, hook: t * 0 + 1),
        ("blocks.0.hook_mlp_out", lambda t, hook: seen.append(float(t.detach().mean()))),
        ("blocks.0.hook_mlp_out", lambda t, hook: t + 1),
    ]
    with llava.model.hooks(hooks):
        _, cache = llava.model.run_with_cache(llava.inputs("text"))
    assert seen == [1.0]
    assert cache["mlp_out", 0].unique().tolist() == [2.0]


def test_two_views_of_one_model_do_not_disturb_each_other(llava: Tiny):
    other = HookedVLM(llava.hf, processor=llava.processor)
    inputs, name = llava.inputs("image"), "blocks.1.attn.hook_pattern"
    clean = llava.model(inputs)
    seen = []
    with llava.model.hooks([(name, lambda t, hook: seen.append("first"))]):
        with other.hooks([(name, lambda t, hook: seen.append("second"))]):
            assert torch.equal(other(inputs), clean)
        llava.model(inputs)
    assert seen == ["first", "second", "first"]
    assert_no_hooks(other)


def test_two_models_of_one_class_do_not_disturb_each_other(tiny: Tiny, llava: Tiny):
    with llava.model.hooks([("blocks.0.attn.hook_pattern", lambda t, hook: t * 0)]):
        assert_no_hooks(tiny.model) if tiny is not llava else None
        assert torch.equal(tiny.model("red"), tiny.hf(tiny.model.to_tokens("red")).logits)


def test_contexts_of_hook_points_are_cleared_on_request(llava: Tiny):
    def count(tensor, hook):
        hook.ctx["n"] = hook.ctx.get("n", 0) + 1

    name = "blocks.0.hook_mlp_out"
    llava.model.run_with_hooks(llava.inputs("text"), fwd_hooks=[(name, count)])
    assert llava.model.hook_dict[name].ctx == {"n": 1}
    llava.model.run_with_hooks(llava.inputs("text"), fwd_hooks=[(name, count)], clear_contexts=True)
    assert llava.model.hook_dict[name].ctx == {}


def test_reading_the_layer_of_a_hook_point(llava: Tiny):
    layers = []
    hooks = [("blocks.*.hook_mlp_out", lambda t, hook: layers.append(hook.layer()))]
    llava.model.run_with_hooks(llava.inputs("text"), fwd_hooks=hooks)
    assert layers == [0, 1, 2]
