"""Generation on every family: Hugging Face's own tokens, and all their positions in the cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.generation import utils as generation_utils

from tests.conftest import assert_no_hooks
from tests.families import ENCODER_DECODERS, FAMILIES, KINDS, MODELS, build, example
from tests.families.base import picture
from vlm_lens import HookedVLM
from vlm_lens.passes.answers import media_tokens

BUILT: dict[str, HookedVLM] = {}
DECODERS = [name for name in MODELS if name not in ENCODER_DECODERS]
# Their forward derives positions on three axes from the mask; the others count from the left edge.
OWN_POSITIONS = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", *ENCODER_DECODERS]
ONCE = ("vision_encoder.", "audio_encoder.", "qformer.", "projector.", "encoder.")
INNER = ("hook_pattern", "hook_attn_scores")


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    for model in BUILT.values():
        assert_no_hooks(model)
        for module in model.hf_model.modules():
            assert "_update_model_kwargs_for_generation" not in vars(module)


def built(name: str) -> HookedVLM:
    if name not in BUILT:
        hf, processor = build(name)
        BUILT[name] = HookedVLM(hf, processor=processor)
    return BUILT[name]


def inputs_of(name: str, kind: str) -> dict[str, Tensor]:
    model = built(name)
    return example(name, model.hf_model, model.processor, kind)


def greedy(model: HookedVLM, n: int = 5) -> dict[str, Any]:
    """Exactly `n` tokens, none of which stands for a picture or a sound: there is none for it."""
    media = media_tokens(model)
    options = {"max_new_tokens": n, "min_new_tokens": n, "do_sample": False}
    return {**options, **({"bad_words_ids": [[token] for token in media]} if media else {})}


def replay_of(name: str, inputs: Mapping[str, Tensor], tokens: Tensor) -> dict[str, Tensor]:
    """The inputs of a forward over prompt and answer: every tensor of positions has grown."""
    if name in ENCODER_DECODERS:
        return {**inputs, "decoder_input_ids": tokens}
    n_new = tokens.shape[1] - inputs["input_ids"].shape[1]
    types = int(name == "paligemma")  # there, an answer is of another type than the prompt
    fills = {"attention_mask": 1, "token_type_ids": types, "mm_token_type_ids": 0}
    fills["image_embeds_position_mask"] = 0
    longer = {
        key: torch.cat([inputs[key], inputs[key].new_full((len(tokens), n_new), fill)], dim=1)
        for key, fill in fills.items()
        if key in inputs
    }
    if "cross_attention_mask" in inputs:
        mask = inputs["cross_attention_mask"]
        longer["cross_attention_mask"] = torch.cat([mask, *[mask[:, -1:]] * n_new], dim=1)
    return {**inputs, **longer, "input_ids": tokens}


def assert_close(name: str, kept: Tensor, replayed: Tensor, *, real: Tensor | None) -> None:
    """Equal at all positions or, of a padded batch, at the real ones."""
    if real is not None and kept.shape[:2] == real.shape:
        kept, replayed = kept[real], replayed[real]
    torch.testing.assert_close(kept, replayed, rtol=2e-3, atol=2e-3, msg=lambda m: f"{name}: {m}")


@pytest.mark.sampled
@pytest.mark.parametrize("name", MODELS)
def test_tokens_and_text_are_hugging_faces_own(name: str):
    model = built(name)
    for kind in KINDS[name]:
        inputs = inputs_of(name, kind)
        without = {k: v for k, v in inputs.items() if k != "decoder_input_ids"}
        expected = model.hf_model.generate(**without, **greedy(model))
        tokens = model.generate(inputs, return_type="tokens", **greedy(model))
        assert torch.equal(tokens, expected), kind
        new = expected[:, -5:]
        assert expected.shape[1] - 5 == (
            1 if name in ENCODER_DECODERS else inputs["input_ids"].shape[1]
        )
        answers = model.tokenizer.batch_decode(new, skip_special_tokens=True)
        text = model.generate(inputs, **greedy(model))
        assert text == ([a.strip() for a in answers] if len(answers) > 1 else answers[0].strip())


@pytest.mark.sampled
@pytest.mark.filterwarnings("ignore::vlm_lens.hooked_root.HookNeverFiredWarning")
@pytest.mark.parametrize("name", MODELS)
def test_the_cache_equals_a_teacher_forced_replay(name: str):
    """At every hook point, encoders and projectors included, and every position."""
    model = built(name)
    for kind in KINDS[name]:
        if kind == "batch":
            continue
        inputs = inputs_of(name, kind)
        tokens, cache = model.generate_with_cache(inputs, names_filter="*", **greedy(model))
        assert torch.equal(tokens, model.generate(inputs, return_type="tokens", **greedy(model)))
        with torch.no_grad():
            _, replay = model.run_with_cache(replay_of(name, inputs, tokens), names_filter="*")
        assert set(cache.keys()) == set(replay.keys())
        assert kind == "text" or set(cache.keys()) == set(model.hook_dict)
        for point in replay:
            assert_close(f"{kind} {point}", cache[point], replay[point], real=None)


@pytest.mark.sampled
@pytest.mark.parametrize("name", [name for name in MODELS if name != "kosmos2"])
def test_the_cache_of_a_padded_batch_equals_a_replay_with_the_same_positions(name: str):
    """Real positions only: what padding attends to is nobody's business."""
    model, inputs = built(name), inputs_of(name, "batch")
    names = [point for point in model.hook_dict if not point.endswith(INNER)]
    tokens, cache = model.generate_with_cache(inputs, names_filter=names, **greedy(model))
    assert not inputs["attention_mask"].all()
    replay_inputs = replay_of(name, inputs, tokens)
    real = replay_inputs["attention_mask"].bool()
    if name not in OWN_POSITIONS:
        offset = int(name == "paligemma")  # counts from one
        positions = (real.long().cumsum(-1) - 1).clamp(min=0) + offset
        replay_inputs["position_ids"] = positions
    with torch.no_grad():
        _, replay = model.run_with_cache(replay_inputs, names_filter=names)
    assert set(cache.keys()) == set(replay.keys())
    for point in replay:
        padded = None if point.startswith((*ONCE[:-1], "decoder.")) else real
        assert_close(point, cache[point], replay[point], real=padded)


@pytest.mark.parametrize("name", MODELS)
def test_encoders_and_projectors_run_once(name: str):
    model, inputs = built(name), inputs_of(name, "image")
    calls = dict.fromkeys(model.hook_dict, 0)

    def count(tensor: Tensor, hook: Any) -> None:
        calls[hook.name] += 1

    with model.hooks([("*", count)]):
        model.generate_with_cache(inputs, names_filter="*hook_resid_post", **greedy(model, 3))
    for point, n in calls.items():
        cached = "cross_attn.hook_k" in point or "cross_attn.hook_v" in point
        assert n == (1 if point.startswith(ONCE) or cached else 4), point


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_an_encoder_keeps_the_prompt_and_a_decoder_the_answer(name: str):
    model, inputs = built(name), inputs_of(name, "image")
    tokens, cache = model.generate_with_cache(inputs, names_filter="*", **greedy(model))
    assert tokens.shape == (1, 6)
    n_prompt = inputs["input_ids"].shape[1]
    for side, length in (("encoder", n_prompt), ("decoder", 6)):
        assert cache[f"{side}.blocks.0.mlp.hook_post"].shape[1] == length
    assert cache["decoder.blocks.0.attn.hook_pattern"].shape[-2:] == (6, 6)
    assert cache["decoder.blocks.0.cross_attn.hook_pattern"].shape[-2:] == (6, n_prompt)


@pytest.mark.parametrize("name", [name for name in ENCODER_DECODERS if name in FAMILIES])
def test_token_maps_of_an_encoder_decoder_are_of_the_prompt(name: str):
    model = built(name)
    inputs = model.prepare(images=picture(0), text="what color ?", answer="red")
    _, cache = model.generate_with_cache(inputs, names_filter="encoder.*", **greedy(model))
    assert cache.image("encoder.blocks.0.hook_resid_post").shape[0] == 4
    n = inputs.shape[1]  # so many tokens of an answer, the start token among them
    _, cache = model.generate_with_cache(inputs, names_filter="*", **greedy(model, n - 1))
    for point in ("hook_resid_post", "attn.hook_q"):
        assert cache[f"decoder.blocks.0.{point}"].shape[1] == n
        with pytest.raises(ValueError, match="a decoder beside an encoder has positions of its"):
            cache.text(f"decoder.blocks.0.{point}")
    assert isinstance(model.generate(inputs, **greedy(model)), str)


def test_padded_batches_of_kosmos2_are_refused():
    """Hugging Face gives new tokens positions that count the padding; a forward does not."""
    model = built("kosmos2")
    with pytest.raises(ValueError, match="Kosmos-2.*one by one"):
        model.generate_with_cache(inputs_of("kosmos2", "batch"), names_filter="hook_embed")
    assert len(model.generate(inputs_of("kosmos2", "batch"))) == 2


@pytest.mark.parametrize("stopped", [False, True])
def test_a_step_that_transformers_runs_ahead_is_not_counted_twice(
    monkeypatch: pytest.MonkeyPatch, stopped: bool
):
    """On Apple's GPUs transformers sees one step late that an answer has ended."""

    class Late(generation_utils.StopCheck):
        late = 0

        def __call__(self, unfinished: Tensor, tokens: Tensor, length: int) -> bool:
            self.late += int(unfinished.max() == 0)
            return self.late == (2 if stopped else 1)

        def finish(self) -> int:
            return self.late - 1

    model, inputs = built("llava_next"), inputs_of("llava_next", "text")
    monkeypatch.setattr(generation_utils, "StopCheck", Late)
    tokens, cache = model.generate_with_cache(
        inputs, names_filter="blocks.0.hook_resid_post", **greedy(model)
    )
    assert tokens.shape[1] == inputs["input_ids"].shape[1] + 5
    assert cache["resid_post", 0].shape[1] == tokens.shape[1]


def test_an_image_that_did_not_come_is_missed():
    for name, what in (("kosmos2", "image"), ("gemma3", "image"), ("qwen2_audio", "audio")):
        inputs = inputs_of(name, "image")
        inputs.pop("pixel_values", None)
        inputs.pop("input_features", None)
        with pytest.raises(ValueError, match=f"[0-9]+ {what} positions but no {what} came"):
            built(name)(inputs)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance_scale": 2.0}, "leave guidance_scale out"),
        ({"prompt_lookup_num_tokens": 2}, "leave prompt_lookup_num_tokens out"),
        ({"past_key_values": ()}, "leave past_key_values out"),
        ({"cache_implementation": "static"}, "a key-value cache that grows.*'static'"),
        ({"num_return_sequences": 2}, "num_return_sequences must be 1"),
    ],
)
def test_options_with_other_steps_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        built("llava_next").generate_with_cache(
            inputs_of("llava_next", "text"), names_filter="hook_embed", **options
        )


def test_tokens_must_be_there():
    with pytest.raises(ValueError, match=r"Expected input_ids.*\['pixel_values'\]"):
        built("blip2-opt").generate({"pixel_values": torch.zeros(1, 3, 32, 32)})


def test_beams_that_a_configuration_asks_for_are_not_followed():
    """InstructBLIP's checkpoints ask for five."""
    model = built("instructblip-llama")
    language = model.hf_model.language_model.generation_config
    inputs = inputs_of("instructblip-llama", "image")
    language.num_beams = 3
    try:
        _, cache = model.generate_with_cache(
            inputs, names_filter="blocks.0.hook_resid_post", **greedy(model)
        )
    finally:
        language.num_beams = 1
    assert len(cache["resid_post", 0]) == 1


def test_a_forward_with_hooks_is_not_compiled(monkeypatch: pytest.MonkeyPatch):
    """Transformers does so on a GPU with a static cache; hooks set since would not be in it."""
    model, inputs = built("gemma3"), inputs_of("gemma3", "text")
    given: list[Any] = []
    generate = model.hf_model.generate

    def note(**options: Any) -> Tensor:
        given.append(options.get("disable_compile"))
        return generate(**options)

    monkeypatch.setattr(model.hf_model, "generate", note)
    model.generate(inputs, max_new_tokens=2)
    with model.hooks([("blocks.0.hook_mlp_out", lambda t, hook: t * 0)]):
        static = model.generate(inputs, max_new_tokens=2, cache_implementation="static")
        assert static == model.generate(inputs, max_new_tokens=2)
    assert given == [None, True, True]


def test_streamers_and_stopping_criteria_work():
    class Stream:
        def __init__(self) -> None:
            self.seen: list[int] = []

        def put(self, tokens: Tensor) -> None:
            self.seen += tokens.flatten().tolist()

        def end(self) -> None:
            self.seen.append(-1)

    model, inputs, stream = built("gemma3"), inputs_of("gemma3", "text"), Stream()
    n_prompt = inputs["input_ids"].shape[1]
    tokens, cache = model.generate_with_cache(
        inputs,
        names_filter="hook_embed",
        streamer=stream,
        stopping_criteria=[lambda ids, scores: torch.tensor([ids.shape[1] == n_prompt + 2])],
        max_new_tokens=5,
    )
    assert stream.seen == [*tokens[0].tolist(), -1]
    assert cache["hook_embed"].shape[1] == tokens.shape[1] == n_prompt + 2


# Loss -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_the_loss_of_an_encoder_decoder_is_over_its_answer(name: str):
    model, inputs = built(name), inputs_of(name, "image")
    with torch.no_grad():
        logits = model(inputs)
    chances = logits[0, :2].softmax(-1)[[0, 1], inputs["decoder_input_ids"][0, 1:]]
    torch.testing.assert_close(model(inputs, "loss"), -chances.log().mean())
    del inputs["decoder_input_ids"]
    with pytest.raises(ValueError, match="Expected an answer to take the loss of"):
        model({**inputs, "decoder_input_ids": torch.tensor([[0]])}, "loss")


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_the_loss_of_answers_of_two_lengths_is_that_of_each_alone(name: str):
    model = built(name)
    answers, image = ["red", "left right blue"], picture(0) if name in FAMILIES else None
    images = [image, image] if name in FAMILIES else None
    both = model.prepare(images=images, text=["what ?", "color ?"], answer=answers)
    each = model(both, "loss", loss_per_token=True)
    assert (each != 0).sum(1).tolist() == [1, 3]
    for i, text in enumerate(["what ?", "color ?"]):
        alone = model.prepare(images=image, text=text, answer=answers[i])
        torch.testing.assert_close(each[i].sum() / (i * 2 + 1), model(alone, "loss"))


@pytest.mark.parametrize("name", ["kosmos2", "gemma3", "qwen2_audio", "qwen2_vl", "mllama"])
def test_the_loss_leaves_images_and_padding_out(name: str):
    """And what follows padding: nothing predicts a prompt's first token, padded or not."""
    model, inputs = built(name), inputs_of(name, "batch")
    each = model(inputs, "loss", loss_per_token=True)
    tokens, mask = inputs["input_ids"], inputs["attention_mask"].bool()
    for row in range(len(tokens)):
        first = int(mask[row].int().argmax())
        assert each[row, :first].abs().sum() == 0
        media = {model.cfg.image_token_id, model.cfg.audio_token_id}
        marked = inputs.get("image_embeds_position_mask", torch.zeros_like(tokens))[row]
        for position in range(first + 1, tokens.shape[1]):
            is_media = tokens[row, position].item() in media or bool(marked[position])
            assert bool(each[row, position - 1] == 0) == is_media
