"""`load_samples` on the bundled world: deterministic, annotated, and strict about arguments."""

import numpy as np
import pytest

from vlm_lens.data import Sample, load_samples
from vlm_lens.data.sample import check_count

TASKS = ("image", "caption", "text")


def same(first: Sample, second: Sample) -> bool:
    images = [np.asarray(image) for image in first.images]
    others = [np.asarray(image) for image in second.images]
    equal = len(images) == len(others) and all(map(np.array_equal, images, others))
    return equal and (first.text, first.answer) == (second.text, second.answer)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_same_arguments_give_the_same_samples(task: str, split: str) -> None:
    first = load_samples("shapes-llava", split=split, task=task, n=9)
    second = load_samples("shapes-llava", split=split, task=task, n=9)
    other = load_samples("shapes-llava", split=split, task=task, n=9, seed=1)
    assert len(first) == 9
    assert all(map(same, first, second))
    assert not all(map(same, first, other))


def test_more_samples_begin_with_the_same() -> None:
    few, many = load_samples("shapes-llava", n=3), load_samples("shapes-llava", n=10)
    assert all(map(same, few, many[:3]))


@pytest.mark.parametrize("task", ["image", "caption"])
def test_samples_with_images(task: str) -> None:
    for sample in load_samples("shapes-llava", task=task, n=14):
        [image] = sample.images
        assert image.size == (64, 64)
        assert image.mode == "RGB"
        assert "<image>" not in sample.text
        assert "answer :" not in sample.text
        assert sample.answer


def test_samples_without_images_tell_the_scene() -> None:
    for sample in load_samples("shapes-llava", task="text", n=16):
        assert sample.images == []
        assert sample.text.startswith("scene : a ")
        assert " question : " in sample.text


def test_every_question_type_comes_up() -> None:
    kinds = {"color", "shape", "digit", "place", "count", "existence", "relation"}
    assert {s.category for s in load_samples("shapes-llava", task="image", n=7)} == kinds
    assert {s.category for s in load_samples("shapes-llava", task="caption", n=7)} == {
        "description"
    }
    found = {s.category for s in load_samples("shapes-llava", task="text", n=8)}
    assert found == kinds | {"description"}


def test_annotations_describe_every_object() -> None:
    for sample in load_samples("shapes-llava", n=21):
        objects, image = sample.annotations["objects"], np.asarray(sample.images[0])
        assert len(objects) == sample.annotations["scene"].count(" at the ")
        assert set(sample.annotations["about"]) <= set(range(len(objects)))
        for entry in objects:
            assert (
                f"a {entry['color']} {entry['name']} at the {entry['place']}"
                in (sample.annotations["scene"])
            )
            assert (entry["shape"] is None) != (entry["digit"] is None)
            assert entry["mask"].shape == image.shape[:2]
            assert entry["patch_mask"].shape == (8, 8)
            rows, columns = np.nonzero(entry["mask"])
            assert entry["box"] == (
                *(columns.min(), rows.min()),
                *(columns.max() + 1, rows.max() + 1),
            )
            touched = {(row // 8, column // 8) for row, column in zip(rows, columns, strict=True)}
            assert touched == set(zip(*np.nonzero(entry["patch_mask"]), strict=True))


@pytest.mark.full
def test_splits_share_no_scene() -> None:
    scenes = {
        split: {s.annotations["scene"] for s in load_samples("shapes-llava", split=split, n=150)}
        for split in ("train", "val", "test")
    }
    assert not scenes["train"] & scenes["test"]
    assert not scenes["train"] & scenes["val"]
    assert not scenes["val"] & scenes["test"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "validation"}, r"split must be one of .*'val'.*got 'validation'"),
        ({"task": "vqa"}, r"task must be one of .*'caption'.*got 'vqa'"),
        ({"n": 0}, "n must be at least 1, got 0"),
        ({"n": -5}, "n must be at least 1, got -5"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_samples("shapes-llava", **arguments)


@pytest.mark.parametrize("n", [1.5, "3", None, True, float("nan")])
def test_a_count_is_a_whole_number(n: object) -> None:
    with pytest.raises(TypeError, match="expected n as a whole number"):
        check_count("n", n)


def test_true_is_no_count_and_an_empty_text_no_name() -> None:
    with pytest.raises(TypeError, match="expected n as a whole number, got True"):
        load_samples("shapes-llava", n=True)
    with pytest.raises(TypeError, match="expected the name or folder of a data set"):
        load_samples("")
