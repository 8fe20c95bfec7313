"""What some of the answer's neurons react to: what the demo tells of automatic explanations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

from vlm_lens.analyses.explain import explain
from vlm_lens.neurons import NeuronSet
from vlm_lens.pages.tables import Table, of_frame
from vlm_lens.report.explain_words import against_others, on_average

if TYPE_CHECKING:
    from vlm_lens.analyses.explanations import Explanations
    from vlm_lens.data import Sample
    from vlm_lens.model import HookedVLM
    from vlm_lens.report.study import AnswerStudy

CANDIDATES = 6
"""So many neurons of the language model are explained, and as many of those before it."""

_EXEMPLARS = 5
_SHOWN = 3
_COLUMNS = ["neuron", "explanation", "score", "shuffled"]
_NAMES = {"shuffled": "with the others' explanations"}


@dataclass(frozen=True, eq=False)
class ExplainedView:
    """Explanations, ready for a page.

    Attributes:
        sentences: How well the best explained neuron is predicted, and how well the others are.
        table: All neurons with their explanations.
        sheet: The exemplars of the best one, as HTML.
        n_samples: How many samples there were, half of them held out.
    """

    sentences: list[str]
    table: Table
    sheet: Markup
    n_samples: int


def explain_candidates(
    model: HookedVLM,
    study: AnswerStudy,
    samples: Sequence[Sample],
    *,
    on_step: Callable[[str], None] = lambda _: None,
) -> Explanations:
    """Explains the answer's best neurons by annotated concepts, on other samples.

    Args:
        model: The model.
        study: The answer, whose best neurons are explained.
        samples: Annotated samples.
        on_step: Is told what happens next.
    """
    views = [*study.language_neurons[:CANDIDATES], *study.image_neurons[:CANDIDATES]]
    neurons = NeuronSet(view.neuron for view in views)
    on_step(f"explaining {len(neurons)} of these neurons, on {len(samples)} samples")
    return explain(
        model, samples, neurons, top=_EXEMPLARS, random=_EXEMPLARS, answers=None, seed=study.seed
    )


def view_of(found: Explanations) -> ExplainedView | None:
    """Makes table, sheet and sentences of explanations; None if there are none."""
    if not len(found):
        return None
    best = found.neurons[int(found.scores.argmax())]
    return ExplainedView(
        sentences=[against_others(found, best.neuron), on_average(found)],
        table=of_frame(found.to_dataframe().filter(items=_COLUMNS).rename(columns=_NAMES)),
        sheet=Markup(found.plot(n=_SHOWN).html),  # it is escaped already
        n_samples=int(found.parameters["n_samples"]),
    )
