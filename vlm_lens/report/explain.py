"""The page of explained neurons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from vlm_lens.pages.environment import render
from vlm_lens.pages.tables import Table, of_frame, of_parameters, written
from vlm_lens.report.explain_words import by_chance, headline, sentences

if TYPE_CHECKING:
    from vlm_lens.analyses.explanations import Explanations
    from vlm_lens.neurons import Neuron

_SHEETS = 5
"""So many of the best explained neurons are shown, and the worst explained one."""

_SHOWN = 3
_LISTED, _PRINTED, _LONGEST = 100, 10, 60
_COLUMNS = ("neuron", "explanation", "score", "image", "text", "shuffled", "p", "better")
_NAMES = {
    "image": "patches",
    "text": "tokens",
    "shuffled": "by chance",
    "better": "better than chance",
}


@dataclass(frozen=True, eq=False)
class Sheet:
    """A neuron's exemplars, ready for a page."""

    place: str
    html: Markup


def render_explanations(found: Explanations, *, model_name: str, command: str) -> str:
    """Renders the page of explained neurons.

    Args:
        found: What was found.
        model_name: What the model was loaded as.
        command: The command that makes the page again.

    Returns:
        HTML that asks for nothing else, and has no script.
    """
    return render(
        "report/explain.html",
        command=command,
        has_figures=False,
        model_name=model_name,
        found=found,
        headline=headline(found),
        sentences=sentences(found),
        facts=_facts(found),
        layers=layer_table(found),
        sheets=_sheets(found),
        listed=_listed(found),
        skipped={str(neuron): why for neuron, why in found.skipped.items()},
        parameters=of_parameters(found.parameters),
    )


def layer_table(found: Explanations) -> Table:
    """Means by component and layer."""
    frame = found.table().rename(columns={"shuffled": "by chance", "better": "share better"})
    return of_frame(frame)


def best_table(found: Explanations) -> Table:
    """The best explained neurons, for the terminal: long explanations are cut."""
    frame = found.to_dataframe().head(_PRINTED)
    frame["explanation"] = [_cut(text) for text in frame["explanation"].tolist()]
    shown = frame.filter(items=["neuron", "score", "shuffled", "explanation"])
    return of_frame(shown.rename(columns=_NAMES))


def _cut(text: str) -> str:
    """A text in one line that is not too long."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"


def _facts(found: Explanations) -> dict[str, str]:
    """What is at the top of the page: the numbers that matter."""
    parameters = found.parameters
    facts = {
        "Explained by": str(parameters.get("explainer", {}).get("explainer", "a function")),
        "Predicted by": str(parameters.get("simulator", {}).get("simulator", "a function")),
        "Samples": written(parameters.get("n_samples")),
    }
    if len(found):
        facts["Mean score"] = written(float(found.scores.mean()))
    if (chance := by_chance(found)) is not None:
        facts["With the explanations of other neurons"] = written(chance)
        facts["Better than chance"] = f"{found.share_better:.1%} of {len(found):,} neurons"
    return facts


def _sheets(found: Explanations) -> list[Sheet]:
    """The best explained neurons, best first, and the worst one where it is none of them."""
    order = np.argsort(-found.scores, kind="stable").tolist()
    places = [(f"Number {rank}", place) for rank, place in enumerate(order[:_SHEETS], start=1)]
    if len(order) > _SHEETS:
        places.append(("The worst", order[-1]))
    return [Sheet(name, _sheet(found, found.neurons[place].neuron)) for name, place in places]


def _sheet(found: Explanations, neuron: Neuron) -> Markup:
    return Markup(found.plot(neuron, n=_SHOWN).html)  # it is escaped already


def _listed(found: Explanations) -> Table:
    frame = found.to_dataframe().head(_LISTED).filter(items=list(_COLUMNS))
    return of_frame(frame.rename(columns=_NAMES))
