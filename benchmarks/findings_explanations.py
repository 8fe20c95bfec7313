"""Explanations by concepts and their scores on held-out samples, beside those of random weights.

Samples are questions about images, images to describe and texts without images; behind each prompt
is the answer that belongs to it, so that trained and random weights see the same tokens. Each seed
draws other samples, other neurons of every layer and other random weights.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from benchmarks.findings_random import random_model
from benchmarks.findings_tables import SEEDS, Row, Tables, over_seeds, say
from vlm_lens import HookedVLM
from vlm_lens.analyses.explain import Explanations, explain
from vlm_lens.neurons import Neuron
from vlm_lens.neurons.sites import sites
from vlm_lens.shapes_llava.world import make_samples

TASKS = ("image", "caption", "text")
N_SAMPLES = 150
"""Of each task."""

N_NEURONS = 48
"""Of each layer."""

N_BEST = 5
"""Of each kind: by the score, and by that of patches alone."""

COMPONENTS = ("vision_encoder", "language_model")
_CALLED = {
    "score": "score",
    "shuffled": "of another",
    "better": "better than chance",
    "image": "patches",
    "text": "tokens",
}
SETTINGS = {"n_samples": N_SAMPLES, "n_neurons": N_NEURONS, "seeds": SEEDS, "answers": "given"}


def tables(model: HookedVLM) -> Tables:
    """All tables by title."""
    trained = [_explained(model, seed, "trained") for seed in SEEDS]
    random = [_explained(random_model(seed), seed, "random") for seed in SEEDS]
    return {
        "by layer": by_layer(trained, random),
        "overall": overall(trained, random),
        "best": best(trained),
        "best, random weights": best(random),
    }


def neurons_of(model: HookedVLM, seed: int) -> list[Neuron]:
    """Some neurons of every layer of the vision encoder and the language model.

    Example:
        >>> len(neurons_of(HookedVLM.from_pretrained("shapes-llava"), 0))
        480
    """
    encoder = model.cfg.vision_encoder
    assert encoder is not None
    sizes = {"vision_encoder": encoder.d_mlp, "language_model": model.cfg.d_mlp}
    draw = np.random.default_rng(seed)
    return [
        Neuron(name, index)
        for component in COMPONENTS
        for name in sites(model, "act", component=component)
        for index in sorted(draw.choice(sizes[component], N_NEURONS, replace=False).tolist())
    ]


def _explained(model: HookedVLM, seed: int, weights: str) -> Explanations:
    say(f"explanations: {weights} weights, seed {seed}")
    samples = [
        sample
        for task in TASKS
        for sample in make_samples(split="val", task=task, n=N_SAMPLES, seed=seed)
    ]
    return explain(
        model, samples, neurons_of(model, seed), answers="given", batch_size=32, seed=seed
    )


def by_layer(trained: list[Explanations], random: list[Explanations]) -> list[Row]:
    """Mean scores of each layer; in the encoder there are no tokens."""
    ours, theirs = ([_means(found) for found in group] for group in (trained, random))
    rows = []
    for place in ours[0].index:
        component, layer = place
        row: Row = {"layer": f"{component.replace('_', ' ')} {layer}"}
        row |= _over(ours, place)
        row |= {f"random weights: {name}": cell for name, cell in _over(theirs, place).items()}
        rows.append(row)
    return rows


def _means(found: Explanations) -> pd.DataFrame:
    frame = found.to_dataframe().astype({"better": float})
    means = frame.groupby(["component", "layer"])[list(_CALLED)].mean().astype(float)
    return means.loc[list(COMPONENTS)]  # as signals go: the encoder first


def _over(frames: list[pd.DataFrame], place: tuple) -> Row:
    return {
        _CALLED[name]: over_seeds([frame.loc[place, name] for frame in frames])
        for name in ("score", "better", "image", "text")
    }


def overall(trained: list[Explanations], random: list[Explanations]) -> list[Row]:
    """Mean scores of each component."""
    rows = []
    for weights, group in (("trained", trained), ("random", random)):
        for component in COMPONENTS:
            frames = [found.to_dataframe() for found in group]
            some = [f[f["component"] == component].astype({"better": float}) for f in frames]
            row: Row = {"weights": weights, "neurons of": component.replace("_", " ")}
            for name, called in _CALLED.items():
                row[called] = over_seeds(
                    [float(frame[name].astype(float).mean()) for frame in some]
                )
            rows.append(row)
    return rows


def best(results: list[Explanations]) -> list[Row]:
    """The neurons of all seeds that are explained best: by the score, and by that of patches."""
    every = pd.concat([found.to_dataframe() for found in results])
    rows = []
    for by, column in {"all positions": "score", "patches": "image"}.items():
        frame = every.sort_values(column, ascending=False, kind="stable", na_position="last")
        for row in frame.drop_duplicates("neuron").head(N_BEST).itertuples():
            about: Row = {
                "best by": by,
                "neuron": f"`{row.neuron}`",
                "explanation": row.explanation,
            }
            numbers = {
                _CALLED[name]: getattr(row, name) for name in ("score", "shuffled", "image", "text")
            }
            rows.append(about | {name: _number(value) for name, value in numbers.items()})
    return rows


def _number(value: float) -> float | None:
    return None if pd.isna(value) else round(float(value), 4)
