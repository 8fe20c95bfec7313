"""The exercises: what is asked about, and which check belongs to which number."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from PIL import Image

from vlm_lens.data import load_samples
from vlm_lens.inputs import Inputs, TokenMap
from vlm_lens.model import HookedVLM
from vlm_lens.shapes_llava import IMAGES
from vlm_lens.teaching import checks, claims
from vlm_lens.teaching.setting import Setting
from vlm_lens.teaching.verdict import Verdict, is_open

Check = Callable[[Setting, Any], str | None]

_CHECKS: dict[int, tuple[Check, str]] = {
    1: (checks.position, "The map counts every position, whatever it shows."),
    2: (checks.attention_share, "Rows of a pattern add up to 1, so this is a share."),
    3: (checks.averaging_hook, "What a hook function returns takes the activation's place."),
    4: (checks.picture_neurons, "A set remembers its order, best first."),
    5: (checks.share_of_controls, "Now a claim about neurons can be compared with chance."),
    6: (checks.neighbours, "The grid has borders, the row of positions has none."),
    7: (checks.shape_head, "One head more, found by an experiment and not by looking."),
    8: (claims.check, "The others claim more than was measured."),
}


class Exercises:
    """Checks answers to the exercises of ``notebooks/07_exercises.ipynb``.

    A check says what is wrong with an answer, not what the answer is. It never raises for a wrong
    answer, nor for an answer that is a function which raises.

    Args:
        model: The model that the questions are about.

    Example:
        >>> exercises = Exercises(HookedVLM.from_pretrained("shapes-llava"))
        >>> exercises.check(1, ...)
        Exercise 1: open. Put your answer in place of the three dots.
        >>> exercises.check(1, "top left")
        Exercise 1: not yet. A position is an integer, this is a str.
        >>> exercises.is_right(1)
        False
    """

    def __init__(self, model: HookedVLM) -> None:
        self._model = model
        self._verdicts: dict[int, Verdict] = {}

    @cached_property
    def _setting(self) -> Setting:
        return Setting.of(self._model, self.picture, self.question)

    @cached_property
    def picture(self) -> Image.Image:
        """The picture that most questions are about."""
        return load_samples(IMAGES)[0].images[0]

    @property
    def question(self) -> str:
        """What the model is asked about it."""
        return "what color is the square ?"

    @property
    def inputs(self) -> Inputs:
        """Both, prepared."""
        return self._setting.inputs

    @property
    def token_map(self) -> TokenMap:
        """What each position of these inputs is."""
        return self._setting.token_map

    @torch.no_grad()
    def check(self, exercise: int, answer: Any) -> Verdict:
        """Says whether an answer is right, and if not, why.

        Args:
            exercise: Its number.
            answer: A value or a function, as the question asks for it; ``...`` is no answer.

        Raises:
            KeyError: There is no such exercise.
        """
        if exercise not in _CHECKS:
            raise KeyError(f"there is no exercise {exercise}: they are 1 to {len(_CHECKS)}")
        verdict = self._verdict(exercise, answer)
        self._verdicts[exercise] = verdict
        return verdict

    def _verdict(self, exercise: int, answer: Any) -> Verdict:
        check, praise = _CHECKS[exercise]
        if is_open(answer):
            return Verdict(exercise, "open", "Put your answer in place of the three dots.")
        try:
            complaint = check(self._setting, answer)
        except checks.Unanswered as reason:
            return Verdict(exercise, "open", str(reason))
        if complaint is None:
            return Verdict(exercise, "right", praise)
        return Verdict(exercise, "not yet", complaint)

    def is_right(self, exercise: int) -> bool:
        """Whether the last answer to an exercise was right."""
        return exercise in self._verdicts and self._verdicts[exercise].state == "right"

    @property
    def n_right(self) -> int:
        """How many exercises are answered rightly."""
        return sum(map(self.is_right, _CHECKS))

    def __repr__(self) -> str:
        return f"Exercises({self.n_right} of {len(_CHECKS)} right)"
