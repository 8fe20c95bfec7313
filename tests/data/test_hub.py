"""Hugging Face data sets: rows become samples; the optional package is asked for by name."""

import sys
from types import ModuleType
from typing import Any
from unittest.mock import Mock

import pytest
from PIL import Image

from vlm_lens.data import load_samples
from vlm_lens.data.hub import to_sample

ROWS = [{"question": f"{i} ?", "image": Image.new("L", (4, 4)), "answer": i} for i in range(5)]


def test_rows_are_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub cannot be reached in tests, so the one function that reaches it is replaced."""
    calls: list[tuple[str, dict[str, Any]]] = []
    package = ModuleType("datasets")

    def load_dataset(name: str, **options: Any) -> list[dict[str, Any]]:
        calls.append((name, options))
        return ROWS

    package.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", package)
    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", lambda *_, **__: None)
    samples = load_samples("owner/data", split="validation", n=3)
    assert calls == [("owner/data", {"split": "validation", "streaming": True})]
    assert [sample.text for sample in samples] == ["0 ?", "1 ?", "2 ?"]
    assert [sample.answer for sample in samples] == ["0", "1", "2"]
    assert samples[0].images == [ROWS[0]["image"]]


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="pip install datasets"):
        load_samples("owner/data")


@pytest.mark.parametrize("name", ["nope", "owner/data"])
def test_a_hub_that_does_not_answer_is_asked_once(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    asked: list[str] = []

    def repo_info(_: Any, name: str, **options: Any) -> None:
        asked.append(f"{options['repo_type']} {name}")
        raise RuntimeError("no route")  # each library of requests has errors of its own

    monkeypatch.setitem(sys.modules, "datasets", Mock())
    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", repo_info)
    with pytest.raises(ConnectionError, match=f"no folder '{name}' here, and.*hub.*no route"):
        load_samples(name)
    assert asked == [f"dataset {name}"]


def test_a_name_that_the_hub_does_not_know_is_no_folder_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    datasets = Mock()
    datasets.load_dataset.side_effect = FileNotFoundError("not on the hub")
    monkeypatch.setitem(sys.modules, "datasets", datasets)
    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", lambda *_, **__: None)
    with pytest.raises(FileNotFoundError, match="no folder 'nope' here.*not on the hub"):
        load_samples("nope")


def test_a_name_that_the_hub_can_have_none_of_is_not_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", Mock())
    with pytest.raises(FileNotFoundError, match="no name on the Hugging Face hub"):
        load_samples("no/such/folder")


def test_columns_are_sorted_into_the_sample() -> None:
    images = [Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4))]
    sample = to_sample({"text": "t", "images": images, "category": "c", "id": 3}, where="row 0")
    assert (sample.text, len(sample.images), sample.category) == ("t", 2, "c")
    assert sample.annotations == {"id": 3}
    assert sample.answer is None


def test_rows_may_have_no_image() -> None:
    assert to_sample({"prompt": "p", "image": None}, where="row 0").images == []


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"caption": "x"}, r"row 4: expected one of the columns .*got \['caption'\]"),
        ({"text": "x", "image": "a.png"}, "row 4: expected images, got str"),
    ],
)
def test_bad_rows_are_named(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_sample(row, where="row 4")
