from __future__ import annotations

import pytest
import torch

from tests.tiny import INPUT_KINDS, Tiny

SAME = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}


@pytest.mark.parametrize("kind", INPUT_KINDS)
def test_tokens_are_hugging_faces_own(tiny: Tiny, kind: str):
    inputs = tiny.inputs(kind)
    expected = tiny.hf.generate(**inputs, **SAME)
    assert torch.equal(tiny.model.generate(inputs, return_type="tokens", **SAME), expected)
    with tiny.model.hooks([("blocks.*", lambda t, hook: None)]):
        assert torch.equal(tiny.model.generate(inputs, return_type="tokens", **SAME), expected)


def test_text_is_the_answer_alone(llava: Tiny):
    inputs = llava.inputs("image")
    tokens = llava.model.generate(inputs, return_type="tokens", **SAME)
    text = llava.model.generate(inputs, **SAME)
    new = tokens[0, inputs.shape[1] :]
    assert text == llava.model.tokenizer.decode(new, skip_special_tokens=True).strip()
    answers = llava.model.generate(llava.inputs("batch"), **SAME)
    assert isinstance(answers, list)
    assert len(answers) == 3


def test_hooks_fire_at_every_step_and_the_encoder_once(llava: Tiny):
    lengths: dict[str, list[int]] = {"blocks.0.mlp.hook_post": [], "projector.hook_out": []}
    hooks = [(name, lambda t, hook: lengths[hook.name].append(t.shape[1])) for name in lengths]
    inputs = llava.inputs("image")
    with llava.model.hooks(hooks):
        llava.model.generate(inputs, **SAME)
    assert lengths["blocks.0.mlp.hook_post"] == [inputs.shape[1], 1, 1, 1, 1, 1]
    assert lengths["projector.hook_out"] == [16]


def test_hooks_steer_the_answer(llava: Tiny):
    """A hook that adds one token's direction to the last stream makes the model say it."""
    direction = llava.model.tokens_to_residual_directions("two") * 1000
    with llava.model.hooks([("blocks.2.hook_resid_post", lambda t, hook: t + direction)]):
        answer = llava.model.generate(llava.inputs("image"), **SAME)
    assert answer == "two two two two two two"


@pytest.mark.sampled
@pytest.mark.parametrize("kind", ["text", "image", "images"])
def test_the_cache_equals_a_teacher_forced_replay(tiny: Tiny, kind: str):
    inputs = tiny.inputs(kind)
    names = "blocks.*" if kind == "text" else "*"
    tokens, cache = tiny.model.generate_with_cache(inputs, names_filter=names, **SAME)
    assert torch.equal(tokens, tiny.model.generate(inputs, return_type="tokens", **SAME))
    replay_inputs = inputs.extend(tokens)
    with torch.no_grad():
        _, replay = tiny.model.run_with_cache(replay_inputs, names_filter=names)
    assert set(cache.keys()) == set(replay.keys())
    for name in replay:
        torch.testing.assert_close(cache[name], replay[name], rtol=2e-3, atol=2e-3, msg=name)
    assert len(cache.token_maps[0].positions("answer")) == 6
    assert cache["resid_post", 0].shape[1] == tokens.shape[1]


def test_the_cache_of_a_padded_batch_equals_a_replay_with_the_same_positions(llava: Tiny):
    """Real positions only: what padding attends to is nobody's business."""
    inputs = llava.inputs("batch")
    names = ["blocks.*resid_post", "blocks.*hook_post", "blocks.*hook_z", "blocks.*pattern"]
    tokens, cache = llava.model.generate_with_cache(inputs, names_filter=names, **SAME)
    replay_inputs = inputs.extend(tokens)
    real = replay_inputs.attention_mask.bool()
    positions = (real.long().cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        _, replay = llava.model.run_with_cache(
            replay_inputs, names_filter=names, position_ids=positions
        )
    for name in replay:
        ours, theirs = cache[name], replay[name]
        if name.endswith("pattern"):
            ours, theirs = ours.transpose(1, 2), theirs.transpose(1, 2)
        torch.testing.assert_close(ours[real], theirs[real], rtol=2e-3, atol=2e-3, msg=name)


def test_a_generated_image_token_is_no_image(llava: Tiny):
    """A random model may say "<image>"; the new position is the answer's, with no place."""
    steer = llava.model.tokens_to_residual_directions("<image>") * 1000
    with llava.model.hooks([("blocks.2.hook_resid_post", lambda t, hook: t + steer)]):
        _, cache = llava.model.generate_with_cache(
            llava.inputs("image"), names_filter="blocks.0.mlp.hook_post", **SAME
        )
    assert len(cache.token_maps[0].positions("answer")) == 6
    assert cache.image(("post", 0)).shape[0] == 16


def test_an_intervention_is_in_the_cache_at_every_step(llava: Tiny):
    name = "blocks.1.mlp.hook_post"

    def silence(tensor, hook):
        tensor = tensor.clone()
        tensor[..., 7] = 0
        return tensor

    with llava.model.hooks([(name, silence)]):
        _, cache = llava.model.generate_with_cache(
            llava.inputs("image"), names_filter=name, dtype=torch.bfloat16, **SAME
        )
    assert cache[name][..., 7].abs().max() == 0
    assert cache[name][..., 8].abs().max() > 0
    assert cache[name].dtype == torch.bfloat16


def test_generation_that_stops_early_is_cached_to_its_end(llava: Tiny):
    end = llava.model.tokens_to_residual_directions("<eos>") * 1000
    hook = ("blocks.2.hook_resid_post", lambda t, hook: t + end)
    with llava.model.hooks([hook]):
        tokens, cache = llava.model.generate_with_cache(
            llava.inputs("text"), names_filter="blocks.0.hook_resid_post", max_new_tokens=6
        )
    assert tokens.shape[1] == llava.inputs("text").shape[1] + 1
    assert cache["resid_post", 0].shape[1] == tokens.shape[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "at least 1, got 0"),
        ({"return_type": "text"}, "'str', 'tokens' or 'input'.*got 'text'"),
        ({"max_new_tokens": True}, "at least 1, got True"),
        ({"use_past_kv_cache": True, "use_cache": True}, "both: they say the same"),
        ({"stop_at_eos": False, "eos_token_id": 2}, "both: they say the same"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_options_are_refused(llava: Tiny, options, message):
    with pytest.raises(ValueError, match=message):
        llava.model.generate(llava.inputs("text"), **options)


def test_beams_and_no_filter_are_refused_when_caching(llava: Tiny):
    with pytest.raises(ValueError, match="num_beams"):
        llava.model.generate_with_cache(llava.inputs("text"), names_filter="*", num_beams=2)
    with pytest.raises(ValueError, match="what to keep"):
        llava.model.generate_with_cache(llava.inputs("text"), names_filter=None)
