"""What a search found, in sentences: made from its numbers, whatever they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from vlm_lens.pages.tables import written
from vlm_lens.pages.words import listing

if TYPE_CHECKING:
    from vlm_lens.analyses.critical import CriticalNeurons
    from vlm_lens.masking.measurement import Measurement

_RATIO, _AGREEMENT = "perplexity_ratio", "agreement"


def headline(result: CriticalNeurons) -> str:
    """Whether the model collapses, and without how many neurons.

    Example:
        >>> from vlm_lens.analyses.critical import CriticalNeurons
        >>> from vlm_lens.masking.measurement import Measurement, Stages
        >>> from vlm_lens.neurons import NeuronSet
        >>> name = "blocks.1.hook_mlp_out"
        >>> result = CriticalNeurons(
        ...     method="CAN", k=2, is_monotone=True, stages=Stages(1, 2, ""), sizes={name: 128},
        ...     ranking=NeuronSet.from_indices({name: [5, 9]}), parameters={"model": "tiny"},
        ...     curve=(Measurement(0, {"perplexity_ratio": 1.0, "agreement": 1.0}, False),
        ...            Measurement(1, {"perplexity_ratio": 3.0, "agreement": 0.5}, False),
        ...            Measurement(2, {"perplexity_ratio": 50.0, "agreement": 0.0}, True)))
        >>> headline(result)
        'tiny collapses without its 2 best-ranked neurons of 128'
        >>> print(*sentences(result), sep="\\n")
        Without them perplexity is 50 times that of the whole model, and 0% of its answers are left.
        Degradation begins at k = 1: collapse takes 2 times as many neurons.
        Neuron 2 of the ranking takes perplexity from 3 to 50 times that of the whole model.
        Of the 2 critical neurons 2 are in the language model (of 128).
    """
    model = result.parameters.get("model") or "The model"
    total = sum({**result.ranking.sizes, **result.sizes}.values())
    of_all = f" of {total:,}" if total else ""
    if result.collapsed_before:
        return f"{model} counts as collapsed with nothing masked"
    if result.k is None:
        k = result.curve[-1].k
        return f"{model} does not collapse without {_best(k)}{of_all}"
    return f"{model} collapses without {_best(result.k)}{of_all}"


def sentences(result: CriticalNeurons) -> list[str]:
    """What that does to it, in which stages, and where the neurons are."""
    k = result.curve[-1].k if result.k is None else result.k
    found = [_effect(result, k), *_stages(result), _place(result)]
    return [sentence for sentence in found if sentence]


def _best(k: int) -> str:
    return "its best-ranked neuron" if k == 1 else f"its {k:,} best-ranked neurons"


def _at(result: CriticalNeurons, k: int) -> Measurement:
    return next(m for m in result.curve if m.k == k)


def _effect(result: CriticalNeurons, k: int) -> str:
    metrics, clean = _at(result, k).metrics, result.curve[0].metrics
    parts = []
    if _RATIO in metrics:
        parts.append(f"perplexity is {written(metrics[_RATIO])} times that of the whole model")
    if result.parameters.get("target") == "answer" and _AGREEMENT in metrics:
        parts.append(
            f"it gives {metrics[_AGREEMENT]:.0%} of the answers of the data, with nothing masked "
            f"{clean[_AGREEMENT]:.0%}"
        )
    elif clean.get(_AGREEMENT):  # of texts that it would not write itself, nothing can be left
        parts.append(f"{metrics[_AGREEMENT] / clean[_AGREEMENT]:.0%} of its answers are left")
    them = "it" if k == 1 else "them"
    return f"Without {them} {', and '.join(parts)}." if parts else ""


def _stages(result: CriticalNeurons) -> list[str]:
    """How the loss went, as far as it was measured."""
    onset, k = result.stages.onset, result.k
    if result.stages.degraded_before:
        found = "Its answers count as degraded with nothing masked: no k is where that begins."
        return [found] if k is None else [found, *_last_step(result, k)]
    if k is None:
        if onset is None:
            return ["Nor does it degrade, as far as was measured."]
        return [f"Degradation begins at k = {onset:,}."]
    if onset is None:
        return ["No degradation was seen before.", *_last_step(result, k)]
    if onset == k:
        found = f"Degradation begins at the same k = {k:,}: no stage of it was seen before."
    else:
        found = (
            f"Degradation begins at k = {onset:,}: collapse takes {k / onset:,.3g} times as many "
            "neurons."
        )
    return [found, *_last_step(result, k)]


def _last_step(result: CriticalNeurons, k: int) -> list[str]:
    """How sudden the collapse is: what the last neuron does."""
    before = next((m.metrics.get(_RATIO) for m in result.curve if m.k == k - 1), None)
    after = _at(result, k).metrics.get(_RATIO)
    if before is None or after is None:
        return []
    return [
        f"Neuron {k:,} of the ranking takes perplexity from {written(before)} to {written(after)} "
        "times that of the whole model."
    ]


def _place(result: CriticalNeurons) -> str:
    """In which components the critical neurons are, most first."""
    if result.k is None:
        return ""
    frame = result.histogram("component").sort_values("critical", ascending=False, kind="stable")
    parts = []
    for component, critical, size in frame.itertuples(index=False):
        of_all = "" if pd.isna(size) else f" (of {size:,})"
        if critical:
            parts.append(f"{critical:,} in the {component.replace('_', ' ')}{of_all}")
    if result.k == 1:
        return f"It is {parts[0].removeprefix('1 ')}."
    return f"Of the {result.k:,} critical neurons {_listed(parts)}."


def _listed(parts: list[str]) -> str:
    """Such as "8 are in the projector (of 256), 4 in the encoder (of 64) and 2 in ..."."""
    return listing([parts[0].replace(" in ", " are in ", 1), *parts[1:]])
