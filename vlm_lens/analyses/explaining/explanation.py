"""What an explainer says of a neuron."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from vlm_lens.analyses.exemplars import KINDS, Exemplars, Kind, SampleView
from vlm_lens.analyses.explaining.concept import Concept


@dataclass(frozen=True)
class Term:
    """A concept of an explanation.

    Attributes:
        concept: Where the neuron is active.
        level: How active it is there on average, from 0 to 10.
    """

    concept: Concept
    level: int | float


@dataclass(frozen=True, eq=False)
class Explanation:
    """What a neuron reacts to, in words and, where they are known, as concepts.

    Attributes:
        text: In words; "" where nothing was found.
        terms: The concepts; none where an explanation is words only.
        elsewhere: How active the neuron is where no term holds, at patches and at tokens.
        details: What else the explainer has to say, as JSON can hold it, e.g. the fit of each term.

    Example:
        >>> Explanation("red things").text
        'red things'
    """

    text: str
    terms: tuple[Term, ...] = ()
    elsewhere: Mapping[Kind, int | float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
    details: Mapping[str, Any] = field(default_factory=dict)


Explainer = Callable[[Exemplars], Explanation]
"""From exemplars of a neuron to what it reacts to."""

Simulator = Callable[[Explanation, SampleView], Float[np.ndarray, " n"]]
"""From an explanation and a sample to how active the neuron would be at each position.

The scale is free, since predictions are correlated with activations; NaN where it says nothing.
"""
