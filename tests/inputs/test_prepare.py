"""What `prepare` makes fits the model, and what it is given wrong is said before a model runs."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlavaProcessor

from tests.inputs.conftest import (
    CHAT_TEMPLATE,
    TEXT_TEMPLATE,
    build_config,
    build_model,
    build_processor,
    build_tokenizer,
)
from vlm_lens.geometry import fixed_layout
from vlm_lens.inputs import Inputs
from vlm_lens.inputs import prepare as prepare_any

PICTURE = Image.new("RGB", (50, 40), "red")
WIDE = Image.new("RGB", (90, 20), "blue")
TEXT = "what color is it ?"


# All models here are LLaVAs; tests/inputs/test_families.py has the others.
prepare = partial(prepare_any, layout=fixed_layout)


def run(processor: LlavaProcessor | None = None, **arguments) -> Inputs:
    return prepare(processor or build_processor(), build_config(), **arguments)


@pytest.fixture(scope="module")
def model(kind: str):
    return build_model(kind)


# --- what fits the model


def test_the_model_takes_the_inputs_and_counts_the_same_image_positions(kind, model):
    inputs = prepare(
        build_processor(kind),
        model.config,
        images=[PICTURE, None, [PICTURE, WIDE]],
        text=[TEXT, "what ?", "<image> one <image> two"],
    )
    features = model.get_image_features(inputs.pixel_values).pooler_output
    positions = inputs.positions_mask("image")
    assert positions.sum() == sum(len(feature) for feature in features) == 3 * 16
    assert torch.equal(positions, inputs.input_ids == model.config.image_token_id)
    assert model(**inputs).logits.shape == (*inputs.shape, model.config.text_config.vocab_size)


def test_a_painted_box_changes_the_embedding_at_its_position_only(kind, model):
    """From pixel to position, through the model's own scatter: features are patch embeddings."""
    processor = build_processor(kind)
    size = (96, 64)
    black = Image.new("RGB", size)
    text = "<image> what <image> ?"

    def features(second: Image.Image) -> tuple[Inputs, torch.Tensor]:
        inputs = prepare(processor, model.config, images=[black, second], text=text)
        seen = []
        hook = model.model.language_model.register_forward_pre_hook(
            lambda _module, _args, kwargs: seen.append(kwargs["inputs_embeds"][0]), with_kwargs=True
        )
        with torch.no_grad():
            model(**inputs)
        hook.remove()
        return inputs, seen[0]

    inputs, before = features(black)
    token_map = inputs.token_map[0]
    for pos in token_map.positions("image", image=1):
        x0, y0, x1, y1 = token_map.box(pos)
        painted = black.copy()
        # Inside of the box by more than the reach of the bicubic filter.
        painted.paste((255, 255, 255), (int(x0) + 7, int(y0) + 7, int(x1) - 7, int(y1) - 7))
        _, after = features(painted)
        changed = (after - before).abs().amax(dim=-1) > 1e-4
        assert changed.nonzero().flatten().tolist() == [pos]


def test_batch_gives_the_same_logits_as_single_samples(kind, model):
    processor = build_processor(kind)
    samples = [(PICTURE, TEXT), (None, "what ?"), (WIDE, "color ?")]
    images, texts = zip(*samples, strict=True)
    batch = prepare(processor, model.config, images=list(images), text=list(texts))
    together = model(**batch).logits
    for i, (image, text) in enumerate(samples):
        alone = prepare(processor, model.config, images=image, text=text)
        expected = model(**alone).logits[0]
        assert torch.allclose(together[i, -len(expected) :], expected, atol=1e-4)


def test_an_image_with_a_class_token_keeps_its_patches_aligned():
    config = build_config("clip")
    config.vision_feature_select_strategy = "full"
    processor = build_processor("clip")
    processor.vision_feature_select_strategy = "full"
    token_map = prepare(processor, config, images=PICTURE, text=TEXT).token_map[0]
    assert len(token_map.positions("image")) == 17
    assert token_map.cells[1:4] == [(-1, -1), (0, 0), (0, 1)]
    with pytest.raises(ValueError, match="class token"):
        token_map.box(1)


# --- prompts


def test_a_text_without_template_follows_its_placeholders():
    inputs = run(images=[PICTURE, WIDE], text=TEXT)
    assert inputs.texts == [f"<image><image>\n{TEXT}"]
    assert repr(inputs.token_map[0]) == (
        "TokenMap(38 positions: 32 image (4x4, 4x4), 5 text, 1 special)"
    )
    assert inputs.token_map[0].tokens[-5:] == ["what", "color", "is", "it", "?"]
    assert (inputs.batched, inputs.shape) == (False, (1, 38))


def test_a_text_goes_through_the_processor_template():
    inputs = run(build_processor(chat_template=CHAT_TEMPLATE), images=PICTURE, text=TEXT)
    assert inputs.texts == [f"USER: <image>\n{TEXT} ASSISTANT:"]
    assert inputs.token_map[0].tokens[0] == "<s>"


def test_a_text_only_template_of_the_tokenizer_gets_placeholders_as_text():
    tokenizer = build_tokenizer()
    tokenizer.chat_template = TEXT_TEMPLATE
    inputs = run(build_processor(tokenizer=tokenizer), images=PICTURE, text=TEXT)
    assert inputs.texts == [f"<s>USER: <image>\n{TEXT} ASSISTANT:"]


@pytest.mark.parametrize("text", [f"USER: <image>\n{TEXT} ASSISTANT:", f"<s>USER: <image> {TEXT}"])
def test_a_finished_prompt_is_used_as_it_is_and_bos_is_not_doubled(text: str):
    inputs = run(build_processor(chat_template=CHAT_TEMPLATE), images=PICTURE, text=text)
    assert inputs.texts == [text]
    assert inputs.token_map[0].tokens.count("<s>") == 1


def test_a_finished_text_only_prompt_is_known_by_its_special_tokens():
    text = "<s>USER: what ? ASSISTANT:"
    inputs = run(build_processor(chat_template=CHAT_TEMPLATE), text=["what ?", text])
    assert inputs.texts == ["USER: what ? ASSISTANT:", text]


def test_messages():
    processor = build_processor(chat_template=CHAT_TEMPLATE)
    content = [{"type": "image"}, {"type": "text", "text": TEXT}, {"type": "image"}]
    explicit = run(processor, images=[PICTURE, WIDE], text=[{"role": "user", "content": content}])
    assert explicit.texts == [f"USER: <image>\n<image>\n{TEXT} ASSISTANT:"]
    assert not explicit.batched
    chat = [
        {"role": "system", "content": "one"},
        {"role": "user", "content": "what ?"},
        {"role": "assistant", "content": "red"},
    ]
    implicit = run(processor, images=[PICTURE, None], text=[chat, "two"])
    assert implicit.texts == [
        "SYSTEM: one USER: <image>\nwhat ? ASSISTANT: red ",
        "USER: two ASSISTANT:",
    ]
    assert implicit.batched


def test_messages_with_images_in_a_text_only_template():
    processor = build_processor(chat_template=TEXT_TEMPLATE)
    content = [{"type": "image"}, {"type": "text", "text": TEXT}]
    inputs = run(processor, images=PICTURE, text=[{"role": "user", "content": content}])
    assert inputs.texts == [f"<s>USER: <image>\n{TEXT} ASSISTANT:"]


# --- answers


def test_answers_come_behind_the_unchanged_prompt():
    images, texts = [PICTURE, None], [TEXT, "what ?"]
    prompt = run(images=images, text=texts)
    inputs = run(images=images, text=texts, answer=["red", "blue one </s>"])
    for row in range(2):
        before, now = prompt.token_map[row], inputs.token_map[row]
        given = [now.tokens[pos] for pos in now.positions("prompt")]
        assert given == [before.tokens[pos] for pos in before.positions("prompt")]
    answers = [[m.tokens[pos] for pos in m.positions("answer")] for m in inputs.token_map]
    assert answers == [["red"], ["blue", "one", "</s>"]]
    assert inputs.token_map[1].modality[-3:] == ["text", "text", "special"]


# --- batches


def test_padding_is_on_the_left_and_leaves_the_tokenizer_alone():
    tokenizer = build_tokenizer()
    tokenizer.padding_side = "right"
    before = (tokenizer.padding_side, tokenizer.pad_token, tokenizer.backend_tokenizer.padding)
    inputs = run(build_processor(tokenizer=tokenizer), text=["what ?", TEXT])
    assert inputs.attention_mask.tolist() == [[0, 0, 0, 1, 1, 1], [1] * 6]
    assert inputs.token_map[0].tokens == ["<pad>", "<pad>", "<pad>", "<s>", "what", "?"]
    assert inputs.token_map[0].modality[:4] == ["padding"] * 3 + ["special"]
    after = (tokenizer.padding_side, tokenizer.pad_token, tokenizer.backend_tokenizer.padding)
    assert before == after


def test_without_pad_token_eos_pads_and_the_mask_tells():
    tokenizer = build_tokenizer(pad_token=None)
    inputs = run(build_processor(tokenizer=tokenizer), text=["what ? </s>", TEXT])
    assert inputs.token_map[0].tokens == ["</s>", "</s>", "<s>", "what", "?", "</s>"]
    assert inputs.token_map[0].modality == ["padding"] * 2 + ["special", "text", "text", "special"]
    assert tokenizer.pad_token is None


def test_no_token_to_pad_with():
    processor = build_processor(tokenizer=build_tokenizer(pad_token=None, eos_token=None))
    assert run(processor, text="what ?").shape == (1, 3)
    with pytest.raises(ValueError, match="neither a pad nor an eos token: set tokenizer.pad_token"):
        run(processor, text=["what ?", TEXT])


def test_text_only_batches_have_no_pixel_values():
    inputs = run(text=[TEXT, "what ?"])
    assert set(inputs) == {"input_ids", "attention_mask"}
    assert inputs.pixel_values is None
    assert run(text=TEXT, images=[]).pixel_values is None
    assert run(text=[TEXT], images=[None]).images == [[]]


def test_images_can_come_from_anywhere(tmp_path: Path):
    PICTURE.save(tmp_path / "red.png")
    array = np.asarray(PICTURE)
    sources = [str(tmp_path / "red.png"), tmp_path / "red.png", PICTURE, array, array / 255]
    inputs = run(images=list(sources), text=["what"] * len(sources))
    pixel_values = inputs.pixel_values
    assert pixel_values is not None
    assert all(torch.equal(image, pixel_values[0]) for image in pixel_values)
    assert [len(images) for images in inputs.images] == [1] * 5


# --- errors


@pytest.mark.parametrize("text", ["", "  \n", [{"role": "user", "content": " "}]])
def test_an_empty_text_is_an_error(text):
    processor = build_processor(chat_template=CHAT_TEMPLATE)
    with pytest.raises(ValueError, match="sample 1: the prompt is empty"):
        run(processor, text=["what", text])


def test_no_texts():
    with pytest.raises(ValueError, match="at least one text, got an empty list"):
        run(text=[])


@pytest.mark.parametrize(
    ("text", "images", "match"),
    [
        ("<image> what", [PICTURE, WIDE], r"sample 0: .*has 1 '<image>' .*but 2 image"),
        ("<image> what", None, r"sample 0: .*has 1 '<image>' .*but 0 image"),
        (["what", "<image><image> what"], [None, WIDE], r"sample 1: .*has 2 '<image>' .*but 1 ima"),
    ],
)
def test_another_number_of_placeholders_than_images(text, images, match: str):
    with pytest.raises(ValueError, match=match):
        run(text=text, images=images)


def test_another_number_of_image_entries_than_texts():
    with pytest.raises(ValueError, match="got 1 for 2 texts: give a text without images None"):
        run(text=[TEXT, TEXT], images=[PICTURE])
    with pytest.raises(TypeError, match="with one entry per text, .* got Image: put it in a list"):
        run(text=[TEXT], images=PICTURE)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"text": 7}, "expected text as a str, chat messages or a list of these, got int"),
        ({"text": ["what", 7]}, r"sample 1: expected the prompt as a str or .* got int"),
        ({"text": [[{"role": "user", "content": "what"}, "what"]]}, "sample 0: expected the prom"),
        ({"text": [{"role": "user", "content": None}]}, "content as a str or a list .* got None"),
        ({"text": "what", "answer": ["red"]}, "answer as a str, as text is one, got"),
        ({"text": ["what"], "answer": "red"}, "answer as a list of 1 str, one per text, got 'red'"),
        ({"text": ["what", "is"], "answer": ["red", None]}, "answer as a list of 2 str"),
        ({"text": "what", "images": 3}, "expected an image as a path, .* got int"),
    ],
)
def test_wrong_types(arguments: dict, match: str):
    with pytest.raises(TypeError, match=match):
        run(**arguments)


def test_messages_that_miss_a_key():
    processor = build_processor(chat_template=CHAT_TEMPLATE)
    with pytest.raises(ValueError, match=r"needs 'role' and 'content', got the keys \['role'\]"):
        run(processor, text=[{"role": "user"}])


def test_messages_without_a_template():
    with pytest.raises(ValueError, match="sample 0: chat messages need a chat template"):
        run(text=[{"role": "user", "content": "what"}])


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (["red"], "one answer per text, got 1 for 2 texts"),
        (["red", " "], r"sample 1: the answer is empty \(' '\)"),
        (["<image>", "red"], "sample 0: the answer holds the placeholder '<image>'"),
    ],
)
def test_answers_that_do_not_fit(answer: list[str], match: str):
    with pytest.raises(ValueError, match=match):
        run(text=["what", "is"], answer=answer)


def test_a_bad_image_says_which_one_it_is():
    with pytest.raises(FileNotFoundError) as caught:
        run(text=["what", "is"], images=[PICTURE, [PICTURE, "nowhere.png"]])
    assert caught.value.__notes__ == ["This is image 1 of sample 1."]


def test_a_prompt_longer_than_the_context_says_both_lengths():
    fits = run(text="what", images=[PICTURE] * 5, answer="red " * 14)
    assert fits.shape == (1, 96)
    match = r"sample 0: the prompt has 97 tokens \(80 of them .* 5 images?\), .* holds 96"
    with pytest.raises(ValueError, match=match):
        run(text="what", images=[PICTURE] * 5, answer="red " * 15)


def test_an_image_too_long_and_narrow_is_refused_before_it_is_enlarged():
    with pytest.raises(ValueError, match="200000x1 pixels .*enlarge it to 6400000x32 before"):
        run(text="what", images=Image.new("RGB", (200_000, 1)))


@pytest.mark.usefixtures("unchecked")
def test_a_tokenizer_is_no_processor():
    with pytest.raises(TypeError, match="TokenizersBackend has no image_processor"):
        prepare(build_tokenizer(), build_config(), text="what")  # pyright: ignore


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("image_token_id", 3, "image_token_id is 3, but the model's is 4"),
        ("patch_size", None, "patch_size is None, but the model's is 8: use the model's own"),
        ("vision_feature_select_strategy", "full", "is 'full', but the model's is 'default'"),
        ("num_additional_image_tokens", 0, "set processor.num_additional_image_tokens=1"),
    ],
)
def test_a_processor_of_another_model(name: str, value: object, match: str):
    processor = build_processor()
    setattr(processor, name, value)
    with pytest.raises(ValueError, match=match):
        run(processor, text="what", images=PICTURE)


def test_an_image_processor_that_does_not_do_as_it_says(monkeypatch: pytest.MonkeyPatch):
    processor = build_processor()
    crop = type(processor.image_processor).center_crop
    monkeypatch.setattr(
        type(processor.image_processor),
        "center_crop",
        lambda self, image, size: crop(self, image, size)[:, :24, :],
    )
    with pytest.raises(ValueError, match="made pixel_values of 32x24 pixels .* settings say 32x32"):
        run(processor, text="what", images=PICTURE)
