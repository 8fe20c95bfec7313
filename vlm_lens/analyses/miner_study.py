"""The study of MINER: scores, sets, and what is lost without each modality's neurons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import pandas as pd

from vlm_lens.analyses import miner
from vlm_lens.analyses.mined import Mined
from vlm_lens.analyses.miner_curve import MaskingCurve, masking_curve
from vlm_lens.analyses.miner_layers import layer_sites
from vlm_lens.analyses.miner_scores import ModalityScores, Split, checked_weights
from vlm_lens.analyses.miner_selection import Strategy
from vlm_lens.data import Sample
from vlm_lens.experiments import Matrix, matrix
from vlm_lens.model import HookedVLM
from vlm_lens.passes import Run
from vlm_lens.studies import study

Datasets = Mapping[str, Sequence[Sample]]


def _check(datasets: Datasets, **options: Any) -> None:
    """Refuses options that are out of range, and tasks that cannot be graded.

    Raises:
        ValueError: There are such.
    """
    checked_weights(options["metric_weights"])
    for name in ("n_measured", "max_new_tokens"):
        if options[name] < 1:
            raise ValueError(f"expected {name} of at least 1, got {options[name]}")
    for name, ratio in [("ratio", options["ratio"]), *(("ratios", r) for r in options["ratios"])]:
        if not 0 < ratio <= 1:
            raise ValueError(f"expected {name} above 0 and at most 1, got {ratio}")
    for name, samples in datasets.items() if options["controls"] else ():
        if not any((sample.answer or "").strip() for sample in samples):
            raise ValueError(
                f"--controls grades answers, but none of the {len(samples)} samples of {name!r} "
                "has one"
            )


@study("miner", title="MINER", paper="arXiv 2410.04819", n=100, check=_check)
def study_modalities(
    model: HookedVLM,
    datasets: Datasets,
    *,
    sites: str = "act",
    separate: Split = "special_text_separate",
    metric_weights: Sequence[float] = (0.0, 0.25, 0.25, 0.5, 0.0),
    ratio: float = 0.02,
    strategy: Strategy = "LA_MU",
    controls: bool = False,
    ratios: Sequence[float] = (0.02, 0.05, 0.1),
    n_measured: int = 50,
    fill: Literal["zero", "min"] = "zero",
    seeds: Sequence[int] = (0, 1, 2),
    max_new_tokens: int = 40,
    run: Run = Run(),  # noqa: B008
) -> Mined:
    """The neurons that each modality needs (MINER).

    They are ranked by how active they are on its tokens, and by attention.

    Args:
        model: The model.
        datasets: Samples by data set.
        sites: Which neurons: act, post or a glob of hook names, one in each layer.
        separate: Which modalities are told apart.
        metric_weights: Of the metrics prob, mean, max, attn_k and attn_q; the authors' weights.
        ratio: Share of all neurons, over all modalities.
        strategy: How neurons are selected.
        controls: Mask each modality's neurons, random ones, and all others, and ask again
            (minutes).
        ratios: Shares of neurons that are masked.
        n_measured: Samples of each data set that are asked.
        fill: What masked neurons are set to.
        seeds: Of the random controls.
        max_new_tokens: The longest answer.
        run: How it is done.
    """
    names = layer_sites(model, sites)
    scoring = partial(miner.score, model, datasets, split=separate, sites=names)
    scores = run.kept("scores", ModalityScores, lambda run: scoring(**run.keywords))
    weights: Any = tuple(map(float, metric_weights))
    selected = miner.select(scores, ratio=ratio, strategy=strategy, weights=weights)
    found = Mined(scores, selected, ratio, strategy, weights)
    if not controls:
        return found
    masking = {"seeds": seeds, "value": fill, "max_new_tokens": max_new_tokens}
    tasks = _tasks(scores, datasets, n=n_measured)
    some = {modality: neurons for modality, neurons in selected.items() if neurons}
    curves = partial(_curve, model, found, tasks, sorted(set(ratios)), masking)
    return replace(
        found,
        specificity=run.kept(
            "specificity",
            Matrix,
            lambda run: matrix(model, some, tasks, sizes=scores.sizes, **masking, **run.asking),
        ),
        curve=run.kept("curve", MaskingCurve, partial(curves, False)),
        complement=run.kept("complement", MaskingCurve, partial(curves, True)),
    )


def _tasks(scores: ModalityScores, datasets: Datasets, *, n: int) -> dict[str, list[Sample]]:
    """Of each data set the first samples that count and have an answer."""
    tasks = {}
    for name, samples in datasets.items():
        left_out = set(scores.parameters["left_out"].get(name, ()))
        counted = (sample for i, sample in enumerate(samples) if i not in left_out)
        asked = [sample for sample in counted if (sample.answer or "").strip()]
        if not asked:
            raise ValueError(
                f"--controls grades answers, but no sample of {name!r} that counts has one"
            )
        tasks[name] = asked[:n]
    return tasks


def _curve(
    model: HookedVLM,
    found: Mined,
    tasks: Mapping[str, Sequence[Sample]],
    ratios: Sequence[float],
    masking: Mapping[str, Any],
    complement: bool,
    run: Run,
) -> MaskingCurve:
    """All ratios, each kept as soon as it is measured."""
    how: dict[str, Any] = {"strategy": found.strategy, "weights": list(found.weights), **masking}
    measured = partial(masking_curve, model, found.scores, tasks, complement=complement, **how)
    curves = [
        run.kept(
            f"{'all but ' * complement}{100 * ratio:g}%",
            MaskingCurve,
            lambda run, ratio=ratio: measured(ratios=[ratio], **run.asking),
        )
        for ratio in ratios
    ]
    frame = pd.concat([curve.frame for curve in curves], ignore_index=True)
    is_again = (frame["ratio"] == 0) & frame.duplicated(["task", "ratio"])
    notes = dict.fromkeys(note for curve in curves for note in curve.notes)
    frame = frame[~is_again].reset_index(drop=True)
    return replace(curves[0], frame=frame, notes=tuple(notes))
