"""Texts and messages as people write them: special tokens, unknown words, images in messages."""

from __future__ import annotations

import base64
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.families import FAMILIES, build
from tests.families.base import picture
from tests.inputs.conftest import CHAT_TEMPLATE
from tests.inputs.test_prepare import PICTURE, TEXT, build_processor, run
from tests.tiny import Tiny
from vlm_lens import HookedVLM
from vlm_lens.inputs.words import UnknownWordsWarning

BYTES = BytesIO()
PICTURE.save(BYTES, "PNG")
CODE = base64.b64encode(BYTES.getvalue()).decode()
OTHERS = ["kosmos2", "qwen2_audio"]
URL = f"data:image/png;base64,{CODE}"
SOURCES: dict[str, dict[str, Any]] = {
    "a picture": {"type": "image", "image": PICTURE},
    "base64": {"type": "image", "base64": CODE},
    "a data URL": {"type": "image", "url": URL},
    "as OpenAI has it": {
        "type": "image_url",
        "image_url": {"url": URL},
    },
    "as OpenAI had it": {"type": "image_url", "image_url": URL},
}


def asked(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": TEXT}]}]


def templated(name: str) -> HookedVLM:
    """A family with a chat template that writes its placeholder, and nothing else around."""
    hf, processor = build(name)
    processor.chat_template = (
        "{% for part in messages[0]['content'] %}"
        "{{ IMAGE if part['type'] == 'image' else part['text'] }} {% endfor %}"
    ).replace("IMAGE", repr(processor.image_token))
    return HookedVLM(hf, processor=processor)


# --- images in messages


# The others' processors put the image in front by themselves, or take sounds.
@pytest.mark.parametrize("name", [n for n in FAMILIES if "blip" not in n and n not in OTHERS])
def test_images_inside_messages_are_those_that_hugging_face_finds(name: str):
    model, image = templated(name), picture(3, size=(50, 34))
    messages = asked({"type": "image", "image": image}, {"type": "image", "image": image})
    messages[0]["content"][-1]["text"] = "red ?"
    expected = model.processor.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    inputs = model.prepare(text=messages)
    assert torch.equal(inputs.pixel_values, expected["pixel_values"])
    assert torch.equal(inputs.input_ids, expected["input_ids"])


@pytest.mark.parametrize("how", [*SOURCES, "a path"])
def test_every_way_to_put_an_image_into_a_message(how: str, tmp_path: Path):
    PICTURE.save(tmp_path / "a.png")
    part = SOURCES.get(how, {"type": "image", "path": str(tmp_path / "a.png")})
    processor = build_processor(chat_template=CHAT_TEMPLATE)
    inside = run(processor, text=asked(part))
    apart = run(processor, text=asked({"type": "image"}), images=PICTURE)
    assert torch.equal(inside.pixel_values, apart.pixel_values)
    assert inside.texts == apart.texts
    batch = run(processor, text=[asked(part), asked(), asked(part, part)])
    assert [len(images) for images in batch.images] == [1, 0, 2]


@pytest.mark.parametrize(
    ("parts", "images", "message"),
    [
        ([SOURCES["a picture"], {"type": "image"}], None, "1 of 2 image parts .* hold their image"),
        (
            [SOURCES["a picture"]],
            PICTURE,
            "inside of the messages or .* 1 inside and 1 apart",
        ),
        ([{"type": "video", "video": "a.mp4"}], None, "type 'video'.*pass frames .* as images"),
        ([{"type": "audio", "audio": "a.wav"}], None, "type 'audio', but this model takes images"),
        ([{"type": "image", "base64": "?"}], None, "expected an image in base64, but '\\?'"),
        ([{"type": "image", "url": "http://a/b.png"}], None, "nothing is fetched from the network"),
    ],
)
def test_messages_whose_images_do_not_fit(parts: list, images: Any, message: str):
    processor = build_processor(chat_template=CHAT_TEMPLATE)
    with pytest.raises(ValueError, match=message):
        run(processor, text=asked(*parts), images=images)


# --- special tokens, unknown words, half characters


@pytest.mark.parametrize("template", [None, CHAT_TEMPLATE])
def test_a_special_token_inside_of_ones_own_text_is_named(template: str | None):
    processor = build_processor(chat_template=template)
    with pytest.raises(ValueError, match="sample 0: the text holds the special token '</s>'.*take"):
        run(processor, text="what </s> color ?", images=PICTURE)


def test_a_text_that_a_special_token_keeps_from_the_template_is_warned_of():
    processor = build_processor(chat_template=CHAT_TEMPLATE)
    with pytest.warns(UserWarning, match="special token '</s>'.*the chat template is not applied"):
        run(processor, text="what </s> color ?")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(processor, text="<s> what ?").texts == ["<s> what ?"]
        assert run(processor, text="what </s> ?", chat_template=False).texts == ["what </s> ?"]
        assert run(processor, text="<image> what </s> ?", images=PICTURE).shape[1] > 16


def test_words_that_the_tokenizer_does_not_know_are_a_warning(llava: Tiny):
    calls = (
        lambda: llava.model.prepare(text="what zebra ?"),
        lambda: llava.model.prepare(text="what ?", answer="zebra"),
        lambda: llava.model("what zebra ?"),
        lambda: llava.model.to_tokens(["red", "zebra"]),
        lambda: llava.model.to_single_token("zebra"),
    )
    for call in calls:
        with pytest.warns(UnknownWordsWarning, match=r"1 word, .*'<unk>' instead: 'zebra'"):
            call()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        llava.model.prepare(text="<bos> <unk> ?", answer="red <unk>")  # as someone wrote it


def test_half_of_a_character_is_refused(llava: Tiny):
    messages = [{"role": "user", "content": "red \ud800"}]
    processor = build_processor(chat_template=CHAT_TEMPLATE)
    for call in (
        lambda: llava.model.prepare(text="red \ud800"),
        lambda: llava.model.prepare(text="red", answer="red \ud800"),
        lambda: run(processor, text=messages),
        lambda: llava.model("red \ud800"),
        lambda: llava.model.to_tokens("red \ud800"),
    ):
        with pytest.raises(ValueError, match=r"a lone surrogate \('\\ud800' at character 4\)"):
            call()


# --- tokens


def test_tokens_as_lists(llava: Tiny):
    tokens = llava.model.to_tokens("what color ?")
    expected = llava.model(tokens)
    assert torch.equal(llava.model(tokens[0].tolist()), expected)
    assert torch.equal(llava.model(tokens.tolist()), expected)
    with pytest.raises(TypeError, match=r"lists of one length, got \[\[1, 2\], \[3\]\]"):
        llava.model([[1, 2], [3]])


@pytest.mark.sampled
@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_without_an_embedding_are_refused(name: str):
    model = HookedVLM(build(name)[0])
    n = model.hf_model.get_input_embeddings().weight.shape[0]
    for wrong in (n, -1):
        with pytest.raises(ValueError, match=rf"from 0 to {n - 1} in input_ids, got \[{wrong}\]"):
            model(torch.tensor([[5, wrong]]))
    with pytest.raises(ValueError, match=r"at least one token in input_ids, got \[1, 0\]"):
        model(torch.zeros(1, 0, dtype=torch.long))


def test_prepared_prompts_as_strings(llava: Tiny):
    inputs = llava.inputs("batch")
    assert llava.model.to_str_tokens(inputs) == [list(m.tokens) for m in inputs.token_map]
    single = llava.inputs("text")
    assert llava.model.to_str_tokens(single) == single.token_map[0].tokens
