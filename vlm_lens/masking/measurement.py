"""What is measured as more and more neurons are masked."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Measurement:
    """The model without its first `k` neurons.

    Attributes:
        k: How many neurons were masked.
        metrics: What was measured, by name; infinity and NaN are possible values. Names with
            "perplexity" in them are perplexities (or their ratios), others are shares from 0 to 1.
        collapsed: Whether this counts as collapse; None where it was not judged.
        answers: The answer to each prompt, where they were generated.
    """

    k: int
    metrics: dict[str, float]
    collapsed: bool | None = None
    answers: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Stages:
    """Where the two stages of a collapse begin.

    Attributes:
        onset: The number of masked neurons from which answers degrade; None if they never do, and
            where they count as degraded with nothing masked.
        collapse: The number from which the collapse is complete; None likewise.
        rule: How the two were read off the curve, in words.
        degraded_before: Whether the answers count as degraded with nothing masked, such as answers
            of the data that the model does not give: then nothing begins at any k.
    """

    onset: int | None
    collapse: int | None
    rule: str
    degraded_before: bool = False
