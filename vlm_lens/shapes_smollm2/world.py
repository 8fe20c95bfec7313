"""The samples of the `shapes` world in plain English: the same scenes, images and annotations."""

from __future__ import annotations

from dataclasses import replace

from vlm_lens.data.sample import Sample
from vlm_lens.shapes_llava import world
from vlm_lens.shapes_smollm2.english import (
    answer_in_english,
    question_in_english,
    scene_in_english,
)


def make_samples(
    *, split: str = "test", task: str = "image", n: int = 200, seed: int = 0
) -> list[Sample]:
    """As `vlm_lens.shapes_llava.world.make_samples`, in plain English.

    Args:
        split: "train", "val" or "test"; no scene content and no digit image is in two of them.
        task: "image", "caption" or "text" (a question about a scene that is told in words).
        n: how many samples.
        seed: which samples.

    Raises:
        ValueError: when `split` or `task` is unknown or `n` is less than 1.

    Example:
        >>> make_samples(task="text", n=1, seed=1)[0].text  # doctest: +ELLIPSIS
        'There is a ... What color is ...?'
    """
    return [in_english(one) for one in world.make_samples(split=split, task=task, n=n, seed=seed)]


def in_english(sample: Sample) -> Sample:
    """A sample of the `shapes` world with its text and its answer in plain English."""
    told, _, question = sample.text.rpartition(" question : ")
    sentences = [scene_in_english(told)] if told else []
    return replace(
        sample,
        text=" ".join([*sentences, question_in_english(question)]),
        answer=answer_in_english(sample.answer or ""),
    )
