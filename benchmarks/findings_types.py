"""Types of neurons by layer, how sure they are, and what they depend on.

Samples are images to describe; behind each prompt is the description that belongs to it, so that
trained and random weights see the same tokens. Each seed draws other samples and other weights.
"""

from __future__ import annotations

import pandas as pd
import torch

from benchmarks.findings_random import random_model
from benchmarks.findings_tables import SEEDS, Row, Tables, over_seeds, say, together
from vlm_lens import HookedVLM
from vlm_lens.analyses.neuron_types import classify
from vlm_lens.analyses.neuron_types_labels import LABELS
from vlm_lens.analyses.neuron_types_result import NeuronTypes
from vlm_lens.shapes_llava.world import make_samples

N_SAMPLES = 600
SETTINGS = {"n_samples": N_SAMPLES, "seeds": SEEDS, "answers": "given"}


def tables(model: HookedVLM) -> Tables:
    """All tables by title."""
    trained = [_typed(model, seed, "trained") for seed in SEEDS]
    random = [_typed(random_model(seed), seed, "random") for seed in SEEDS]
    return {
        "by layer": layers(trained, random),
        "by layer, random weights": together([by_layer(found) for found in random], ["layer"]),
        "labels": labels(trained, random),
        "robustness": robustness(trained),
    }


def _typed(model: HookedVLM, seed: int, weights: str) -> NeuronTypes:
    say(f"types: {weights} weights, seed {seed}")
    samples = make_samples(split="val", task="caption", n=N_SAMPLES, seed=seed)
    return classify(model, samples, answers="given", batch_size=32)


def by_layer(found: NeuronTypes) -> pd.DataFrame:
    """The share of each label in each layer, and of the neurons whose label is sure.

    That is those with a share of samples above 0.8, and those whose label is more than chance.
    """
    frame = found.by_layer().astype({"layer": int})
    confident = found.by_layer(high_confidence=True)[list(LABELS)].sum(axis=1)
    significant = frame[[f"significant {label}" for label in LABELS]].sum(axis=1)
    sure = {"above 0.8": confident, "more than chance": significant}
    return frame[["layer", *LABELS]].assign(**sure)


def layers(trained: list[NeuronTypes], random: list[NeuronTypes]) -> list[Row]:
    """The shares in each layer, and in all layers (which are of one size) of both models."""
    rows = together([by_layer(found) for found in trained], ["layer"])
    for who, group in {"all": trained, "all, random weights": random}.items():
        frames = [by_layer(found).mean(numeric_only=True).to_frame().T for found in group]
        rows += together([frame.assign(layer=who) for frame in frames], ["layer"])
    return [{**row, "layer": str(row["layer"])} for row in rows]


def labels(trained: list[NeuronTypes], random: list[NeuronTypes]) -> list[Row]:
    """Of each label the share of all neurons, how sure it is, and how far thresholds move it."""
    rows = []
    for label in LABELS:
        row: Row = {"label": label, **_shares(trained, label)}
        tried = [found.sensitivity()[label] for found in trained]
        row["least of the grid"] = over_seeds([some.min() for some in tried])
        row["most of the grid"] = over_seeds([some.max() for some in tried])
        row |= {f"random weights: {name}": cell for name, cell in _shares(random, label).items()}
        rows.append(row)
    return rows


def _shares(results: list[NeuronTypes], label: str) -> Row:
    """The share that has a label, of all neurons, over the seeds."""
    found = [one.table().set_index("label").loc[label] for one in results]
    totals = [one.table()["neurons"].sum() for one in results]
    columns = {
        "share": "neurons",
        "above 0.8": "high_confidence",
        "more than chance": "significant",
    }
    return {
        name: over_seeds([row[column] / n for row, n in zip(found, totals, strict=True)])
        for name, column in columns.items()
    }


def robustness(trained: list[NeuronTypes]) -> list[Row]:
    """Whether labels are the same with other samples, and at other thresholds."""
    every = [torch.cat([site.labels for site in found.sites.values()]) for found in trained]
    same = torch.stack([(one == every[0]) for one in every]).all(0)
    changed = [found.sensitivity()["changed"][1:] for found in trained]
    n = len(changed[0])
    return [
        {
            "what": "the same label with all seeds",
            "share of neurons": round(float(same.double().mean()), 6),
        },
        {
            "what": f"another label at another of the {n + 1} thresholds, median",
            "share of neurons": over_seeds([some.median() for some in changed]),
        },
        {
            "what": f"another label at the farthest of the {n + 1} thresholds",
            "share of neurons": over_seeds([some.max() for some in changed]),
        },
    ]
