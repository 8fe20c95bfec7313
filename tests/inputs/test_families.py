"""What `prepare` makes fits the model of every family, and its positions show what it says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from tests.families import _FAMILIES, FAMILIES, KINDS
from tests.families.base import picture
from tests.geometry.families import LAYOUTS, SIZES, WITH_GRIDS, built, placeholder
from vlm_lens.geometry import Size, audio_layout, query_layout
from vlm_lens.inputs import Inputs, TokenMap, prepare

ENCODER_DECODERS = ["instructblip-t5", "blip2-t5"]
DECODERS = [*LAYOUTS, "qwen2_audio"]
# Their processors put the positions of one image in front of the prompt.
QUERIES = ["instructblip-llama", "blip2-opt", "kosmos2", *ENCODER_DECODERS]
QUESTION = "what color is the circle ?"


def run(name: str, media: Any, text: Any = QUESTION, **arguments: Any) -> Inputs:
    """Prepares texts, each with placeholders in front for its images (or sounds)."""
    hf, processor = built(name)
    batched = isinstance(text, list)
    texts, entries = (text, media) if batched else ([text], [media])
    counts = [len(entry) if isinstance(entry, list) else entry is not None for entry in entries]
    texts = [placeholder(name) * n + f" {t}" for t, n in zip(texts, counts, strict=True)]
    return prepare(
        processor,
        hf.config,
        text=texts if batched else texts[0],
        layout=layout_of_family(name),
        **{"audio" if name == "qwen2_audio" else "images": media},
        **arguments,
    )


def layout_of_family(name: str) -> Any:
    return {"qwen2_audio": audio_layout, **LAYOUTS}.get(name, query_layout)


def medium(name: str, seed: int = 0) -> Any:
    if name == "qwen2_audio":
        noise = np.random.default_rng(seed).standard_normal(8000 + 3000 * seed)
        return noise.astype(np.float32)
    return picture(seed, size=((82, 50), (34, 66))[seed])


@torch.no_grad()
def logits(name: str, inputs: Inputs) -> Tensor:
    return built(name)[0](**inputs).logits


# --- what fits the model


@pytest.mark.sampled
@pytest.mark.parametrize("name", LAYOUTS)
@settings(max_examples=12, deadline=None)
@given(size=SIZES)
def test_every_size_of_image_goes_through_the_model(name: str, size: Size):
    """The model checks itself that there are as many features as positions."""
    # Mistral 3 fails on a single token, as it takes the axis of tokens for that of the batch.
    assume(name != "mistral3" or max(size) > 16)
    inputs = run(name, Image.new("RGB", size, "red"))
    assert logits(name, inputs).isfinite().all()
    assert repr(inputs.token_map[0])
    assert inputs.token_map[0].to_dataframe().shape == (inputs.shape[1], 11)


@pytest.mark.parametrize("name", [*DECODERS, *ENCODER_DECODERS])
def test_a_batch_gives_the_same_logits_as_single_samples(name: str):
    first, second = medium(name, 0), medium(name, 1)
    media, texts = [first, second], [QUESTION, "what ?"]
    if name not in QUERIES:
        media, texts = [*media, [first, second]], [*texts, "is the square red ?"]
    together = logits(name, run(name, media, texts))
    for row, (entry, text) in enumerate(zip(media, texts, strict=True)):
        alone = logits(name, run(name, entry, text))[0]
        assert torch.allclose(together[row, -len(alone) :], alone, atol=1e-4)


@pytest.mark.parametrize("name", DECODERS)
def test_a_text_without_image_can_be_in_a_batch(name: str):
    media, texts = [medium(name), None], [QUESTION, "what color ?"]
    inputs = run(name, media, texts)
    together = logits(name, inputs)
    alone = logits(name, run(name, media[0], texts[0]))[0]
    assert torch.allclose(together[0, -len(alone) :], alone, atol=1e-4)
    assert inputs.token_map[1].positions("image") == []
    # Models of queries have no forward without an image; and Mllama sends a text without image
    # through its cross-attention only where another sample has an image.
    if name not in (*QUERIES, "mllama"):
        alone = logits(name, run(name, None, texts[1]))[0]
        assert torch.allclose(together[1, -len(alone) :], alone, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name in FAMILIES
        for kind in KINDS[name]
        # The processors of queries pad between image and text; and LLaVA-OneVision takes images
        # that do not come in a list per sample for images of different samples.
        if not (name in QUERIES and kind == "batch")
        and (name, kind) != ("llava_onevision", "images")
    ],
)
def test_the_tensors_are_those_of_the_processor(name: str, kind: str, monkeypatch):
    """Hugging Face's own batch, padded on the left."""
    hf, processor = built(name)
    monkeypatch.setattr(processor, "chat_template", None, raising=False)
    family = _FAMILIES[name]
    texts, numbers = family.prompts(kind)
    media = [[picture(i, size=family.sizes[i]) for i in entry] for entry in numbers]
    given: dict[str, Any] = {"images": media}
    if name == "qwen2_audio":
        sounds = iter(family.media_inputs(processor, numbers).get("audio", []))
        given = {"audio": [[next(sounds) for _ in entry] for entry in numbers]}
    ours = prepare(processor, hf.config, text=texts, layout=layout_of_family(name), **given)
    theirs = family.example(hf, processor, kind)
    assert set(ours) == set(theirs)
    for key in set(theirs) - {"decoder_input_ids"}:
        assert torch.equal(ours[key], theirs[key]), key


@pytest.mark.parametrize("name", DECODERS)
def test_an_answer_grows_the_inputs_as_generation_does(name: str):
    hf, processor = built(name)
    media, texts = [medium(name, 0), medium(name, 1)], [QUESTION, "what ?"]
    prompt = run(name, media, texts)
    ids = processor.tokenizer("red blue", add_special_tokens=False)["input_ids"]
    longer = prompt.extend(torch.cat([prompt.input_ids, torch.tensor([ids, ids])], dim=1))
    forced = run(name, media, texts, answer=["red blue", "red blue"])
    assert list(longer) == list(forced)
    assert all(torch.equal(longer[key], forced[key]) for key in forced)
    assert longer.token_map == forced.token_map


@pytest.mark.parametrize("name", DECODERS)
def test_a_replay_gives_the_logits_of_the_generation(name: str):
    hf, _ = built(name)
    inputs = run(name, [medium(name, 0), medium(name, 1)], [QUESTION, "what ?"])
    generated = hf.generate(
        **inputs,
        max_new_tokens=3,
        do_sample=False,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
        suppress_tokens=[inputs.image_token_id] if inputs.image_token_id is not None else None,
    )
    replayed = logits(name, inputs.extend(generated.sequences))
    expected = torch.stack(generated.logits, dim=1)
    assert torch.allclose(replayed[:, inputs.shape[1] - 1 : -1], expected, atol=1e-4)


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_answers_of_an_encoder_decoder_go_to_its_decoder(name: str):
    media, texts = [medium(name, 0), medium(name, 1)], [QUESTION, "what ?"]
    inputs = run(name, media, texts, answer=["red", "red blue"])
    assert inputs["decoder_input_ids"].shape == (2, 3)
    assert inputs["decoder_attention_mask"].tolist() == [[0, 1, 1], [1, 1, 1]]
    together = logits(name, inputs)
    alone = logits(name, run(name, media[0], texts[0], answer="red"))[0]
    assert torch.allclose(together[0, -2:], alone, atol=1e-4)


# --- where positions look


def _area(box: tuple[float, ...]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _inside(box: tuple[float, ...]) -> tuple[int, ...]:
    """The middle of a box: resizing spreads what is painted there to hardly any other patch."""
    x0, y0, x1, y1 = box
    dx, dy = (x1 - x0) / 4, (y1 - y0) / 4
    return round(x0 + dx), round(y0 + dy), round(x1 - dx), round(y1 - dy)


@pytest.mark.sampled
@pytest.mark.parametrize("name", WITH_GRIDS)
@settings(max_examples=12, deadline=None)
@given(size=st.tuples(st.integers(40, 200), st.integers(40, 200)), data=st.data())
def test_a_painted_box_changes_what_its_position_holds(name: str, size: Size, data):
    """From pixels to positions, through the model, whose encoder is kept from mixing patches."""
    image = picture(0, size=size)
    token_map = run(name, image).token_map[0]
    placed = [pos for pos in token_map.positions("image") if token_map.view_index[pos] >= 0]
    pos = placed[data.draw(st.integers(0, len(placed) - 1))]
    view = token_map.positions("image", view=token_map.view_index[pos])
    if _area(token_map.box(pos)) < 0.75 * max(_area(token_map.box(other)) for other in view):
        return  # much of it is padding, so that resizing may change its neighbours as much
    x0, y0, x1, y1 = _inside(token_map.box(pos))
    dark = np.asarray(image)[y0:y1, x0:x1].mean() < 128
    painted = image.copy()
    painted.paste((255,) * 3 if dark else (0,) * 3, (x0, y0, x1, y1))
    change = (_embeddings(name, painted) - _embeddings(name, image)).norm(dim=-1)

    assert view[int(change[view].argmax())] == pos
    changed = (change > 1e-3 * change.max()).nonzero().flatten().tolist()
    assert {token_map.modality[p] for p in changed} == {"image"}
    for other in changed:
        reach = _reach(name, token_map, other)
        left, top, right, bottom = token_map.box(other)
        assert left - reach[0] < x1
        assert x0 < right + reach[0]
        assert top - reach[1] < y1
        assert y0 < bottom + reach[1]


def _reach(name: str, token_map: TokenMap, pos: int) -> tuple[float, float]:
    """How far beyond its box a position looks: by the filters of resizing, and of shrinking."""
    grid = token_map.grid(view=token_map.view_index[pos])
    transform, cell = grid.transform, grid.cell_area**0.5
    scales = [
        max(1.0, original / resized)
        for original, resized in zip(transform.original_size, transform.resized_size, strict=True)
    ]
    # Idefics resizes three times, each time with a filter of six pixels.
    margin = 12 if name.startswith(("idefics3", "smolvlm")) else 4
    extra = 2 * cell if name == "onevision-shrunk" else 0
    return margin * scales[0] + extra, margin * scales[1] + extra


@torch.no_grad()
def _embeddings(name: str, image: Image.Image) -> Tensor:
    """What enters the language model at each position."""
    hf, _ = built(name)
    seen: list[Tensor] = []
    language_model = getattr(hf.model, "language_model", None) or hf.model.text_model
    hook = language_model.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(kwargs["inputs_embeds"][0]), with_kwargs=True
    )
    with hook, _unmixed(hf):
        hf(**run(name, image))
    return seen[0]


@contextmanager
def _unmixed(hf: torch.nn.Module) -> Iterator[None]:
    """Silences the attention of the vision tower: each patch then knows of itself only."""
    ends = ("out_proj", "projection_layer", "attention.o_proj", "attn.proj")
    towers = ("vision_tower.", "vision_model.", "visual.")
    hooks = [
        module.register_forward_hook(lambda _module, _args, output: torch.zeros_like(output))
        for path, module in hf.named_modules()
        if path.endswith(ends) and any(tower in path for tower in towers)
    ]
    assert hooks
    yield
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("name", WITH_GRIDS)
def test_the_centre_of_each_box_maps_back_to_its_position(name: str):
    token_map = run(name, picture(0, size=(90, 61))).token_map[0]
    for pos in token_map.positions("image"):
        if token_map.view_index[pos] < 0:
            continue
        x0, y0, x1, y1 = token_map.box(pos)
        if x0 < x1 and y0 < y1:
            x, y = (x0 + x1) / 2, (y0 + y1) / 2
            assert token_map.position(x, y, view=token_map.view_index[pos]) == pos
            finest = token_map.position(x, y)
            assert finest is not None
            a, b = token_map.grid(view=token_map.view_index[finest]), token_map.grid()
            assert a.cell_area <= b.cell_area


@pytest.mark.parametrize("name", WITH_GRIDS)
def test_heatmaps_put_values_where_the_boxes_are(name: str):
    token_map = run(name, picture(0, size=(90, 61))).token_map[0]
    values = np.arange(len(token_map), dtype=np.float64)
    heat = token_map.heatmap(values)
    assert heat.shape == (61, 90)
    for y, x in [(0, 0), (30, 45), (60, 89), (11, 70)]:
        position = token_map.position(x + 0.5, y + 0.5)
        assert np.isnan(heat[y, x]) if position is None else heat[y, x] == position
    whole = token_map.grid()
    assert token_map.grid_values(values).shape == (whole.rows, whole.cols)


@pytest.mark.parametrize("name", ["mistral3", "idefics3", "kosmos2", "gemma3", "internvl"])
def test_what_a_processor_writes_around_an_image_is_special(name: str):
    token_map = run(name, picture(0, size=(50, 34))).token_map[0]
    texts = [token_map.tokens[pos] for pos in token_map.positions("text")]
    assert texts == QUESTION.split()


def test_sounds_have_spans_and_no_boxes():
    inputs = run("qwen2_audio", [medium("qwen2_audio", 0), medium("qwen2_audio", 1)])
    token_map = inputs.token_map[0]
    first, *_, last = token_map.positions("audio")
    assert token_map.span(first) == (0.0, pytest.approx(0.04))
    assert token_map.span(last)[1] == pytest.approx(11000 / 16000, abs=0.04)
    with pytest.raises(ValueError, match="it is audio, which has a time and no place: see TokenMa"):
        token_map.box(first)
    with pytest.raises(ValueError, match=r"position 0 is no audio: it is the .* token"):
        token_map.span(0)
    assert token_map.to_dataframe().loc[first, ["start", "end"]].tolist() == [0.0, 0.04]


# --- errors


def test_images_for_a_model_of_sounds_are_an_error():
    hf, processor = built("qwen2_audio")
    with pytest.raises(TypeError, match="takes audios besides text, and nothing else: pass audio="):
        prepare(processor, hf.config, text="what", images=picture(0), layout=audio_layout)


@pytest.mark.parametrize("name", ["instructblip-llama", "kosmos2"])
def test_a_processor_that_places_images_itself_takes_one_and_no_placeholder(name: str):
    with pytest.raises(ValueError, match="sample 0: .* takes one image per prompt, got 2"):
        run(name, [picture(0), picture(1)])
    with pytest.raises(ValueError, match="has 1 '<image>' .* leave the placeholder out"):
        run(name, picture(0), "<image> what ?")


def test_another_number_of_positions_than_the_model_expects_is_an_error(monkeypatch):
    _, processor = built("blip2-opt")
    monkeypatch.setattr(processor, "num_query_tokens", 3)
    match = r"sample 0: the processor wrote 3 image positions, but .* 1 images? become 4"
    with pytest.raises(ValueError, match=match):
        run("blip2-opt", picture(0))


def test_an_image_that_pixtral_would_shrink_to_nothing_is_an_error():
    with pytest.raises(ValueError, match="1x200 pixels is too long and narrow.*shrink it to 0x64"):
        run("mistral3", Image.new("RGB", (1, 200)))


@pytest.mark.parametrize("sound", [np.zeros((2, 100)), np.zeros(0)])
def test_a_sound_of_another_shape_is_an_error(sound: np.ndarray):
    with pytest.raises(ValueError, match="expected one channel of samples, got an array of shape"):
        run("qwen2_audio", sound)


def test_a_sound_of_whole_numbers_is_an_error():
    with pytest.raises(TypeError, match="as an array or tensor of floats, got int64: decode it"):
        run("qwen2_audio", np.zeros(100, dtype=np.int64))
