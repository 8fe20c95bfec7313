"""Packing is exact: several questions in one sequence give the logits that each gives alone."""

from random import Random

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import LlavaForConditionalGeneration

from vlm_lens.shapes_llava.build import Size, build_model, normalize
from vlm_lens.shapes_llava.draw import draw_images
from vlm_lens.shapes_llava.pack import pack, packed_loss
from vlm_lens.shapes_llava.scenes import sample_scene
from vlm_lens.shapes_llava.train import image_lesson, told_lesson

TINY = Size(vision_width=32, vision_layers=2, text_width=32, text_layers=2, text_mlp=48, heads=2)


@pytest.fixture(scope="module")
def model() -> LlavaForConditionalGeneration:
    torch.manual_seed(0)
    return build_model(TINY).eval()


@pytest.mark.parametrize("modality", ["image", "text"])
@torch.no_grad()
def test_packed_questions_equal_separate_ones(
    model: LlavaForConditionalGeneration, modality: str
) -> None:
    rng = Random(0)
    scenes = [sample_scene(rng, n_objects=n) for n in (1, 4, 2)]
    make = image_lesson if modality == "image" else told_lesson
    items = [make(rng, scene).item for scene in scenes]
    pixels = normalize(draw_images(scenes)) if modality == "image" else None
    packed = pack(items)
    together = model(
        input_ids=packed.input_ids,
        pixel_values=pixels,
        attention_mask=packed.attention_mask,
        position_ids=packed.position_ids,
    ).logits
    losses, weights = [], []
    for row, (prefix, pairs) in enumerate(items):
        image = None if pixels is None else pixels[row : row + 1]
        for segment, (question, answer) in enumerate(pairs, start=1):
            ids = torch.tensor([[*prefix, *question, *answer]])
            alone = model(input_ids=ids, pixel_values=image).logits[0]
            found = together[row][packed.segments[row] == segment]
            torch.testing.assert_close(found, alone[len(prefix) :], atol=2e-5, rtol=1e-4)
            predicted = alone[-len(answer) - 1 : -1]
            losses.append(cross_entropy(predicted, torch.tensor(answer)) * len(answer) ** 0.5)
            weights.append(len(answer) ** 0.5)
    expected = torch.stack(losses).sum() / sum(weights)
    torch.testing.assert_close(packed_loss(together, packed), expected, atol=1e-5, rtol=1e-5)


def test_segments_see_the_prefix_and_themselves_only() -> None:
    packed = pack([([1, 5], [([6], [7]), ([8], [9, 2])]), ([1], [([6], [2])])])
    expected = [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [1, 1, 0, 0, 1, 1, 0],
        [1, 1, 0, 0, 1, 1, 1],
    ]
    assert packed.attention_mask[0, 0].int().tolist() == expected
    assert packed.attention_mask.any(dim=-1).all(), "padding attends to something too"
    assert packed.segments[1].tolist() == [0, 1, 1, -1, -1, -1, -1]


def test_only_answers_are_targets() -> None:
    packed = pack([([1, 5], [([6], [7]), ([8], [9, 2])]), ([1], [([6], [2])])])
    assert packed.targets.tolist() == [
        [-100, -100, 7, -100, 9, 2, -100],
        [-100, 2, -100, -100, -100, -100, -100],
    ]
    assert packed.weights[0].tolist() == pytest.approx([0, 0, 1, 0, 0.5**0.5, 0.5**0.5, 0])
    assert ((packed.weights > 0) == (packed.targets >= 0)).all()
