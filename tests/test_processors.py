from __future__ import annotations

import copy
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoProcessor

from tests.families import build, example
from tests.families.base import picture
from vlm_lens import processors
from vlm_lens.processors import NoVideo, load_processor

VIDEO = ["llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm", "internvl"]
GATED = [*VIDEO, "mistral3"]
PLAIN = ["llava_next", "instructblip-llama", "gemma3", "idefics3", "mllama", "paligemma"]


def tiles(rows: int, columns: int) -> str:
    """A picture in SmolVLM's prompt: its tiles, row by row, and the whole."""
    names = [f"row_{i + 1}_col_{j + 1}" for i in range(rows) for j in range(columns)]
    one = "<fake_token_around_image>"
    return "".join(f"{one}<{name}>{'<image>' * 4}" for name in [*names, "global-img"]) + one


# What the picture of the "image" example becomes in the prompt, counted by hand.
EXPANDED = {
    # 4 x 4 patches of the whole; of the 8 x 8 of the tiles, 6 rows are not padding, each ended.
    "llava_onevision": "<image>" * (16 + 6 * 8 + 6),
    "qwen2_vl": f"<|vision_start|>{'<|image_pad|>' * 6}<|vision_end|>",  # 48 x 32 by 16 x 16
    "qwen2_5_vl": f"<|vision_start|>{'<|image_pad|>' * 15}<|vision_end|>",  # 80 x 48 by 16 x 16
    "qwen3_vl": f"<|vision_start|>{'<|image_pad|>' * 6}<|vision_end|>",
    "smolvlm": tiles(2, 2),
    "internvl": f"<img>{'<IMG_CONTEXT>' * 12}</img>",  # 3 tiles of 4
    "mistral3": "[IMG][IMG][IMG][IMG][IMG_BREAK]" * 2 + "[IMG][IMG][IMG][IMG][IMG_END]",
}
SIZES = {"qwen2_5_vl": (82, 50), "internvl": (66, 34)}


def save(name: str, folder: Path) -> tuple[Any, Any]:
    hf, processor = build(name)
    processor.chat_template = "{{ messages }}"
    processor.save_pretrained(folder)
    hf.config.save_pretrained(folder)
    return hf, processor


def rewrite(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def assert_same_inputs(name: str, hf: Any, one: Any, two: Any) -> None:
    for kind in ("image", "batch"):
        expected, got = example(name, hf, one, kind), example(name, hf, two, kind)
        assert expected.keys() == got.keys()
        assert all(torch.equal(expected[key], got[key]) for key in expected)


@pytest.mark.parametrize("name", GATED)
def test_a_processor_without_torchvision_is_the_real_class_and_counts_right(name: str):
    hf, processor = build(name)
    inputs = example(name, hf, processor, "image")
    text = f"{EXPANDED[name]} what color is the circle ?"
    assert inputs["input_ids"].tolist() == [processor.tokenizer(text)["input_ids"]]
    image = picture(0, size=SIZES.get(name, (50, 34)))
    sizes = {"patch_size": {"height": 16, "width": 16}} if name == "mistral3" else {}
    alone = processor.image_processor([image], return_tensors="pt", **sizes)
    assert torch.equal(inputs["pixel_values"], alone["pixel_values"])
    assert type(processor).__module__.startswith("transformers.models.")
    assert type(processor.image_processor).__name__.endswith("Pil")


@pytest.mark.parametrize("name", GATED + PLAIN)
def test_saving_and_loading_gives_the_same_processor(name: str, tmp_path: Path):
    hf, processor = save(name, tmp_path)
    loaded = load_processor(tmp_path)
    assert type(loaded) is type(processor)
    assert_same_inputs(name, hf, processor, loaded)
    if name in GATED:
        assert loaded.chat_template == "{{ messages }}"


@pytest.mark.parametrize("name", VIDEO)
def test_a_folder_from_a_machine_with_torchvision_loads_and_keeps_its_video_settings(
    name: str, tmp_path: Path
):
    hf, processor = save(name, tmp_path)
    file = tmp_path / "processor_config.json"
    video = {"video_processor_type": "SomeVideoProcessor", "fps": 2, "num_frames": 8}
    image = json.loads(file.read_text())["image_processor"]
    assert not image["image_processor_type"].endswith("Pil")  # the name without is torchvision's
    rewrite(file, video_processor=video)
    loaded = load_processor(tmp_path)
    assert_same_inputs(name, hf, processor, loaded)
    loaded.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "processor_config.json").read_text())
    assert again == json.loads(file.read_text())


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl"])
def test_a_folder_of_the_old_layout_loads(name: str, tmp_path: Path):
    """Hub checkpoints name the class beside the image settings, and say "Fast" for torchvision."""
    hf, processor = save(name, tmp_path)
    config = json.loads((tmp_path / "processor_config.json").read_text())
    (tmp_path / "processor_config.json").unlink()
    image = {**config["image_processor"], "processor_class": config["processor_class"]}
    image["image_processor_type"] += "Fast"
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(image))
    rewrite(tmp_path / "tokenizer_config.json", processor_class=None)
    (tmp_path / "video_preprocessor_config.json").write_text('{"fps": 2}')
    loaded = load_processor(tmp_path)
    assert type(loaded) is type(processor)
    assert loaded.video_processor.settings == {"fps": 2}
    assert_same_inputs(name, hf, processor, loaded)


def test_a_folder_that_names_no_class_is_known_by_its_model(tmp_path: Path):
    _, processor = save("mistral3", tmp_path)
    for name in ("processor_config.json", "tokenizer_config.json"):
        rewrite(tmp_path / name, processor_class=None)
    assert type(load_processor(tmp_path)) is type(processor)


@pytest.mark.parametrize("name", VIDEO)
def test_a_video_is_refused(name: str):
    _, processor = build(name)
    frames = np.zeros((2, 32, 32, 3), dtype=np.uint8)
    with pytest.raises(ImportError, match=r"got a video.*torchvision"):
        processor(text=[processor.video_token], videos=[frames], return_tensors="pt")


def test_a_chat_with_a_picture_needs_no_video_processor():
    _, processor = build("smolvlm")
    template = (
        "{% for part in messages[0]['content'] %}{{ part.get('text', '<image>') }}{% endfor %}"
    )
    chat = [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": picture(0, size=(50, 34))},
                {"type": "text", "text": " what color is the circle ?"},
            ],
        }
    ]
    inputs = processor.apply_chat_template(
        chat, chat_template=template, tokenize=True, return_dict=True, return_tensors="pt"
    )
    hf, _ = build("smolvlm")
    assert torch.equal(inputs["input_ids"], example("smolvlm", hf, processor, "image")["input_ids"])


@pytest.mark.parametrize("name", PLAIN)
def test_other_families_go_the_plain_way(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save(name, tmp_path)
    asked = []
    monkeypatch.setattr(AutoProcessor, "from_pretrained", lambda *args, **kw: asked.append(args))
    load_processor(tmp_path, local_files_only=True)
    assert asked == [(str(tmp_path),)]


def test_remote_code_goes_the_plain_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save("qwen2_vl", tmp_path)
    rewrite(tmp_path / "processor_config.json", auto_map={"AutoProcessor": "mine.Processor"})
    asked = []
    monkeypatch.setattr(AutoProcessor, "from_pretrained", lambda *args, **kw: asked.append(kw))
    load_processor(tmp_path, trust_remote_code=True)
    assert asked == [{"trust_remote_code": True}]
    assert isinstance(load_processor(tmp_path).video_processor, NoVideo)


@pytest.mark.parametrize("path", ["/nowhere/at-all", "nobody/nothing-of-this-name"])
def test_the_error_of_a_missing_repository_is_that_of_transformers(path: str):
    with pytest.raises(OSError) as expected:  # noqa: PT011
        AutoProcessor.from_pretrained(path)
    with pytest.raises(OSError) as got:  # noqa: PT011
        load_processor(path)
    assert str(got.value) == str(expected.value)


def test_nothing_of_transformers_is_left_changed():
    for name in GATED:
        build(name)
    assert "transformers.models.pixtral.image_processing_pixtral" not in sys.modules
    smolvlm = sys.modules["transformers.models.smolvlm.processing_smolvlm"]
    assert smolvlm.num2words is None
    _, processor = build("qwen2_vl")
    assert "check_argument_for_proper_class" not in vars(processor)
    # What transformers says depends on its version; that it still refuses is the point.
    with pytest.raises((AttributeError, TypeError, ValueError)):
        type(processor)(processor.image_processor, processor.tokenizer, NoVideo())


def test_num2words_is_put_back_after_an_error():
    _, processor = build("smolvlm")
    with pytest.raises(TypeError, match="Received a int"):
        processors.build_processor(
            transformers.SmolVLMProcessor, image_processor=3, tokenizer=processor.tokenizer
        )
    assert sys.modules["transformers.models.smolvlm.processing_smolvlm"].num2words is None


def test_a_processor_can_be_copied_and_pickled():
    hf, processor = build("qwen2_vl")
    assert_same_inputs("qwen2_vl", hf, processor, copy.deepcopy(processor))
    assert_same_inputs("qwen2_vl", hf, processor, pickle.loads(pickle.dumps(processor)))
