"""Plain English: the same scenes, questions and answers, written as people write."""

from __future__ import annotations

import pytest

from tests.shapes_smollm2.conftest import needs_smollm2
from vlm_lens.data import load_samples
from vlm_lens.shapes_llava.world import make_samples as in_words
from vlm_lens.shapes_smollm2.english import ANSWER, pieces, question_in_english, scene_in_english


def test_questions_have_a_capital_and_no_space_before_their_mark():
    assert question_in_english("where is the red circle ?") == "Where is the red circle?"
    assert question_in_english("describe the image .") == "Describe the image."


def test_told_scenes_are_a_sentence_for_each_object():
    told = "scene : a red circle at the top left . a blue 7 at the center ."
    english = "There is a red circle at the top left. There is a blue 7 at the center."
    assert scene_in_english(told) == english


@pytest.mark.parametrize("task", ["image", "caption", "text"])
def test_samples_are_those_of_the_world_in_other_words(task: str):
    words = in_words(task=task, n=30, seed=3)
    english = load_samples("shapes-smollm2", task=task, n=30, seed=3)
    for one, other in zip(words, english, strict=True):
        assert other.category == one.category
        assert [a.tobytes() for a in other.images] == [a.tobytes() for a in one.images]
        assert other.annotations["scene"] == one.annotations["scene"]
        assert not any(words in other.text for words in (" ?", " .", "scene :"))
        assert str(other.answer) == str(one.answer).replace(" .", ".")


@pytest.mark.full
@needs_smollm2
@pytest.mark.parametrize("task", ["image", "caption", "text"])
def test_pieces_have_the_tokens_of_the_whole_text(task: str):
    """So the words of a question can be found among its tokens."""
    from vlm_lens.shapes_smollm2.build import build_tokenizer

    tokenizer = build_tokenizer()
    for sample in in_words(task=task, n=20):
        question = sample.text.rpartition(" question : ")[2]
        written = pieces([*question.split(), *ANSWER])
        one_by_one = [token for piece in written for token in tokenizer(piece).input_ids]
        assert one_by_one == tokenizer("".join(written)).input_ids
