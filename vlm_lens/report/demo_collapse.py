"""How many neurons a model can lose: a search that is short enough for the demo."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from vlm_lens.analyses import can

if TYPE_CHECKING:
    from vlm_lens.analyses.critical import CriticalNeurons
    from vlm_lens.data import Sample
    from vlm_lens.model import HookedVLM

MAX_K = 1024
"""The largest set that the demo tries."""

_PROBES = 2


def search_collapse(
    model: HookedVLM,
    samples: Sequence[Sample],
    *,
    longest: int = 20,
    on_step: Callable[[str], None] = lambda _: None,
) -> CriticalNeurons:
    """Ranks all neurons on a few samples, and masks more and more of them (CAN).

    Args:
        model: The model.
        samples: What it is measured on.
        longest: At most so many tokens of an answer.
        on_step: Is told what happens next.

    Returns:
        What was found; fewer k than usual are tried, and none above 1,024.
    """
    answers = "1 answer depends" if len(samples) == 1 else f"{len(samples)} answers depend"
    on_step(f"ranking the neurons that {answers} on")
    scores = can.score(model, samples, max_new_tokens=longest)
    on_step("masking more and more of them, until the model collapses")
    return can.find_critical(
        model, samples, scores, max_k=MAX_K, max_new_tokens=longest, probes=_PROBES
    )
