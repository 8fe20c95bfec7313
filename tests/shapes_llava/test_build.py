"""The processor: the training's pixels and prompts, the words and nothing but the words."""

from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlavaProcessor

from vlm_lens.shapes_llava.build import IMAGE_TOKENS, build_model, build_processor, normalize
from vlm_lens.shapes_llava.draw import draw_images
from vlm_lens.shapes_llava.scenes import sample_scene
from vlm_lens.shapes_llava.train import VOCAB, image_lesson, told_lesson
from vlm_lens.shapes_llava.words import vocabulary


@pytest.fixture(scope="module")
def processor() -> LlavaProcessor:
    return build_processor()


def user(*parts: dict[str, object]) -> list[dict[str, object]]:
    return [{"role": "user", "content": list(parts)}]


def test_processor_gives_the_pixels_of_the_training(processor: LlavaProcessor) -> None:
    images = draw_images([sample_scene(Random(seed)) for seed in range(5)])
    pil = [Image.fromarray(image) for image in images]
    found = processor.image_processor(pil, return_tensors="pt")["pixel_values"]
    assert torch.equal(found, normalize(images))


def test_larger_images_are_shrunk_and_cropped(processor: LlavaProcessor) -> None:
    image = Image.new("RGB", (320, 240), (255, 0, 0))
    pixels = processor.image_processor(image, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 64, 64)
    assert pixels[0, 0].min() == 1
    assert pixels[0, 1].max() == -1


def test_image_prompt_is_that_of_the_training(processor: LlavaProcessor) -> None:
    scene = sample_scene(Random(0))
    prefix, [(question, _), *_] = image_lesson(Random(0), scene).item
    image = Image.fromarray(draw_images([scene])[0])
    content = ({"type": "image", "image": image}, {"type": "text", "text": "describe the image ."})
    inputs = processor.apply_chat_template(
        user(*content),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    assert inputs["input_ids"][0].tolist() == [*prefix, *question]
    assert (inputs["input_ids"] == VOCAB["<image>"]).sum() == IMAGE_TOKENS


def test_text_prompt_is_that_of_the_training(processor: LlavaProcessor) -> None:
    scene = sample_scene(Random(3))
    prefix, [(question, _), *_] = told_lesson(Random(0), scene).item
    words = {index: word for word, index in vocabulary().items()}
    text = " ".join(words[token] for token in (*prefix[1:], *question))
    assert text.endswith("question : describe the scene . answer :")
    content = {"type": "text", "text": text.removesuffix(" answer :")}
    prompt = processor.apply_chat_template(user(content), add_generation_prompt=True)
    assert prompt == text
    assert processor(text=prompt)["input_ids"][0] == [*prefix, *question]


def test_chat_with_an_answer_is_the_whole_training_text(processor: LlavaProcessor) -> None:
    messages = [*user({"type": "text", "text": "is there a 7 ?"})]
    messages.append({"role": "assistant", "content": "yes"})
    assert processor.apply_chat_template(messages) == "is there a 7 ? answer : yes <eos>"


def test_words_come_back_as_written(processor: LlavaProcessor) -> None:
    tokenizer = processor.tokenizer
    ids = tokenizer("What color is the Circle?").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "what color is the circle ?"
    assert tokenizer.convert_ids_to_tokens(ids)[0] == "<bos>"
    assert "<unk>" in tokenizer.decode(tokenizer("an elephant").input_ids)


def test_padding_is_on_the_left(processor: LlavaProcessor) -> None:
    batch = processor.tokenizer(["red", "a red circle"], padding=True)
    assert batch.input_ids[0][:2] == [0, 0]
    assert batch.attention_mask[0] == [0, 0, 1, 1]


def test_every_token_of_the_tokenizer_is_in_the_vocabulary(processor: LlavaProcessor) -> None:
    assert processor.tokenizer.get_vocab() == vocabulary()


def test_model_is_small_and_of_plain_classes() -> None:
    model = build_model()
    assert 1e6 < sum(weight.numel() for weight in model.parameters()) < 3e6
    assert model.config.vision_config.model_type == "clip_vision_model"
    assert model.config.text_config.model_type == "llama"
    assert model.config.vision_feature_layer == -1
    assert model.config.image_token_id == VOCAB["<image>"]
    assert np.isclose(model.lm_head.weight.std().item(), 128**-0.5, rtol=0.1)
