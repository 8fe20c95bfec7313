"""Exercise 8: which claims follow from what was measured."""

from __future__ import annotations

from typing import Any

from vlm_lens.teaching.setting import Setting

CLAIMS = {
    "a": "Zeroing 60 neurons changes an answer. So these neurons store what the answer says.",
    "b": "Zeroing 60 neurons changes an answer; zeroing 60 random ones of the same layers does "
    "not, in 100 drawings. So the answer depends on these more than on most sets of that size.",
    "c": "A neuron is active on every red object of twenty pictures. So it detects red.",
    "d": "Patching one head's output moves nothing. So the head has nothing to do with colours.",
    "e": "The logit lens reads 'blue' at no patch behind layer 1. So the colour is not there yet.",
    "f": "Two heads' clean outputs, put into the corrupted run, turn every answer. So for these "
    "pairs and this question, what these heads write is enough to change the answer.",
}
"""By their letters. Two of them follow."""

_WRONG = {
    "a": "They are needed for the answer; what they hold was not measured, nor compared with any "
    "other sixty.",
    "c": "Were there only red objects that it is active on? And what else was always so?",
    "d": "Patching follows a difference, on one path at a time: another head may make up for it.",
    "e": "The lens reads one direction for each word, that of the last layer.",
}


def check(setting: Setting, answer: Any) -> str | None:  # noqa: ARG001
    """The letters of the claims that follow."""
    try:
        chosen = {str(letter) for letter in answer}
    except TypeError:
        return f"Expected letters, such as {{'a', 'b'}}, got {answer!r}."
    if unknown := chosen - set(CLAIMS):
        return f"There is no claim {sorted(unknown)[0]!r}: they are {', '.join(CLAIMS)}."
    for letter in sorted(chosen & set(_WRONG)):
        return f"Not {letter}: {_WRONG[letter]}"
    missing = len(set(CLAIMS) - set(_WRONG) - chosen)
    return f"What you chose follows, and {missing} more." if missing else None
