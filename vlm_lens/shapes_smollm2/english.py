"""Plain English for the `shapes` world: its words with capitals, and stops without a space."""

from __future__ import annotations

from collections.abc import Sequence

ANSWER = ("answer", ":")
"""What stands between a question and its answer."""

_STOPS = frozenset(".?:")


def pieces(words: Sequence[str]) -> list[str]:
    """Each word as it stands in the English text: the pieces next to each other are the text.

    Example:
        >>> pieces("where is the 7 ? answer :".split())
        ['Where', ' is', ' the', ' 7', '?', ' Answer', ':']
    """
    written = []
    for index, word in enumerate(words):
        is_first = index == 0 or words[index - 1] in _STOPS
        text = word.capitalize() if is_first else word
        written.append(text if index == 0 or word in _STOPS else f" {text}")
    return written


def question_in_english(words: str) -> str:
    """A question of the `shapes` world in plain English.

    Example:
        >>> question_in_english("what color is the object at the top left ?")
        'What color is the object at the top left?'
    """
    return "".join(pieces(words.split()))


def answer_in_english(words: str) -> str:
    """An answer in plain English: it goes on with a sentence, and so begins with no capital.

    Example:
        >>> answer_in_english("a red circle at the top .")
        'a red circle at the top.'
    """
    return words.replace(" .", ".")


def scene_in_english(told: str) -> str:
    """A told scene in plain English, a sentence for each object.

    Example:
        >>> scene_in_english("scene : a red circle at the top . a blue 7 at the left .")
        'There is a red circle at the top. There is a blue 7 at the left.'
    """
    phrases = told.removeprefix("scene : ").removesuffix(" .").split(" . ")
    return " ".join(f"There is {phrase}." for phrase in phrases)
