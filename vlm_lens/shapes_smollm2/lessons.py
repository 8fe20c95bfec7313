"""Lessons: a scene of the `shapes` world with the questions about it, in SmolLM2's tokens.

All questions of a scene share one sequence, in which they cannot see each other (see
`shapes_llava/pack.py`). Positions that are about one object of the scene, and those that are about
two, are marked with what the heads of the training are to say there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch

from vlm_lens.shapes_llava.naming import find_asked, label_object
from vlm_lens.shapes_llava.questions import Question, ask, describe
from vlm_lens.shapes_llava.scenes import Scene
from vlm_lens.shapes_llava.train import Lesson
from vlm_lens.shapes_smollm2.build import IMAGE, IMAGE_END, IMAGE_START, IMAGE_TOKENS
from vlm_lens.shapes_smollm2.comparing import compare
from vlm_lens.shapes_smollm2.english import ANSWER, answer_in_english, pieces, scene_in_english

CATEGORIES = ("color", "shape", "digit", "place", "count", "count", "existence")
"""What is asked about a scene, where it allows it, beside relations and what always can be."""
DESCRIBED_SHARE = 0.25
"""The share of scenes that are described, too."""


def ask_all(rng: Random, scene: Scene, *, relations: int, others: int) -> list[Question]:
    """Questions about existence, relations and others, less those the scene does not allow."""
    categories = ("existence", *rng.sample(CATEGORIES, others), *["relation"] * relations)
    asked = [ask(rng, category, scene) for category in categories]
    if rng.random() < DESCRIBED_SHARE:
        asked.append(describe(scene))
    return [question for question in asked if question is not None]


@dataclass(frozen=True)
class PairLesson(Lesson):
    """A lesson with the positions that are about two objects.

    Attributes:
        compared: these positions, with how the objects `compare`.
    """

    compared: list[tuple[int, tuple[int, int]]]


def make_lesson(
    tokenizer: Any, scene: Scene, prefix: list[int], questions: Sequence[Question], gap: str
) -> PairLesson:
    """A prefix, then each question with its answer; `gap` stands before a question."""
    pairs, mentions, compared, start = [], [], [], len(prefix)
    for question in questions:
        words = [*question.text.split(), *ANSWER]
        written = pieces(words)
        encoded = [tokenizer(piece).input_ids for piece in (gap + written[0], *written[1:])]
        ends = torch.tensor([len(ids) for ids in encoded]).cumsum(0) - 1
        answer = tokenizer(f" {answer_in_english(question.answer)}").input_ids
        for index, thing in find_asked(words, question, scene) if "?" in words else ():
            mentions.append((start + int(ends[index]), label_object(thing)))
        if question.category == "relation":
            first, second = (scene.objects[index] for index in question.about)
            asked = (start + int(end) for end in ends[words.index("?") :])
            compared += [(position, compare(first, second)) for position in asked]
        prompt = [token for ids in encoded for token in ids]
        pairs.append((prompt, [*answer, tokenizer.eos_token_id]))
        start += len(prompt) + len(answer) + 1
    return PairLesson((prefix, pairs), mentions, compared)


def image_lesson(tokenizer: Any, scene: Scene, questions: Sequence[Question]) -> PairLesson:
    """The image, then its questions."""
    ids = tokenizer.convert_tokens_to_ids
    image = [ids(IMAGE_START), *[ids(IMAGE)] * IMAGE_TOKENS, ids(IMAGE_END)]
    return make_lesson(tokenizer, scene, [tokenizer.bos_token_id, *image], questions, "")


def told_lesson(
    tokenizer: Any, scene: Scene, told: str, questions: Sequence[Question]
) -> PairLesson:
    """The scene told in words, then its questions."""
    prefix = [tokenizer.bos_token_id, *tokenizer(scene_in_english(told)).input_ids]
    return make_lesson(tokenizer, scene, prefix, questions, " ")
