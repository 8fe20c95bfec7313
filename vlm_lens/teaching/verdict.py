"""What is said about an answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, and if not, what is wrong with it.

    Attributes:
        exercise: The exercise's number.
        state: "right", "not yet" or "open" (not answered).
        message: What is wrong, or what the right answer means.

    Example:
        >>> Verdict(3, "not yet", "It is a list.")
        Exercise 3: not yet. It is a list.
    """

    exercise: int
    state: str
    message: str

    def __repr__(self) -> str:
        return f"Exercise {self.exercise}: {self.state}. {self.message}".strip()


def is_open(answer: object) -> bool:
    """Whether an answer is still the ``...`` of the question."""
    return answer is ...


def as_number(answer: Any) -> float | None:
    """A number, whichever kind of number or tensor of one element it is; else None.

    Example:
        >>> import torch
        >>> as_number(torch.tensor([2.5])), as_number("2.5"), as_number([1, 2])
        (2.5, None, None)
    """
    if isinstance(answer, str | bool):
        return None
    try:
        return float(answer)
    except (TypeError, ValueError, RuntimeError):
        return None
