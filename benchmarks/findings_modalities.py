"""MINER's modality-specific neurons: what masking them does, and what is said to be seen of them.

Neurons are scored on images with questions, images to describe and texts without images, and masked
in others. Each seed draws other samples to score, other ones to test and another random control.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from operator import or_

import pandas as pd

from benchmarks.findings_tables import SEEDS, Tables, say, together
from vlm_lens import HookedVLM, Sample
from vlm_lens.analyses import miner
from vlm_lens.analyses.miner_attention import last_token_attention
from vlm_lens.analyses.miner_convergence import convergence
from vlm_lens.analyses.miner_curve import ALL, masking_curve
from vlm_lens.analyses.miner_phenomena import phenomena
from vlm_lens.experiments import CLEAN
from vlm_lens.experiments.sets import by_layer, overlap
from vlm_lens.neurons import NeuronSet
from vlm_lens.shapes_llava.world import CATEGORIES, make_samples

TASKS = ("image", "caption", "text")
N_SCORED, N_TESTED, N_STATES = 300, 105, 105
"""Samples of each task: to score neurons with, to mask them in, to look at hidden states in."""

RATIOS = (0.02, 0.1, 0.3)
STRATEGIES: tuple[miner.Strategy, ...] = ("LA_MU", "adaptive", "uniform")
CLOSER_RATIO = 0.1
"""At which strategies, kinds of answers and attention are looked at."""

DESCRIPTION = "description"
"""The category of samples that ask to describe something."""

OPTIONS = {"batch_size": 105, "max_new_tokens": 45}
SETTINGS = {
    "n_scored": N_SCORED,
    "n_tested": N_TESTED,
    "n_states": N_STATES,
    "seeds": SEEDS,
    "strategy": STRATEGIES[0],
}

KEYS: dict[str, tuple[str, ...]] = {
    "masked": ("share", "masked"),
    "by kind of answer": ("masked",),
    "by strategy": ("strategy", "masked"),
    "overlap": ("share", "a", "b"),
    "neurons by layer": ("share", "modality"),
    "hidden states": ("depth",),
    "phenomena": ("modality",),
    "last token": ("masked",),
}
"""By the beginning of a title, the columns that say what a row is about."""

Samples = dict[str, list[Sample]]
"""By task."""


def tables(model: HookedVLM) -> Tables:
    """All tables by title."""
    scores = []
    for seed in SEEDS:
        say(f"modalities: scores, seed {seed}")
        scores.append(miner.score(model, _samples("val", N_SCORED, seed), batch_size=32))
    frames: dict[str, list[pd.DataFrame]] = {}
    for seed, found in zip(SEEDS, scores, strict=True):
        for title, frame in _measured(model, found, seed):
            frames.setdefault(title, []).append(frame)
    return {title: together(some, KEYS[title.partition(",")[0]]) for title, some in frames.items()}


def _samples(split: str, n: int, seed: int) -> Samples:
    return {task: make_samples(split=split, task=task, n=n, seed=seed) for task in TASKS}


def _measured(
    model: HookedVLM, scores: miner.ModalityScores, seed: int
) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each table of one seed, with its title."""
    tasks = _samples("test", N_TESTED, seed)
    for title, ratios in {"masked": RATIOS[:2], "masked, more": RATIOS[2:]}.items():
        say(f"modalities: {title}, seed {seed}")
        yield title, masked(model, scores, tasks, ratios=ratios, seed=seed)
    say(f"modalities: questions and descriptions, seed {seed}")
    yield "by kind of answer", by_kind(model, scores, ratio=CLOSER_RATIO, seed=seed)
    say(f"modalities: strategies, seed {seed}")
    yield "by strategy", by_strategy(model, scores, tasks)
    selected = {ratio: miner.select(scores, ratio=ratio) for ratio in RATIOS}
    yield "overlap", overlaps(selected, scores.sizes)
    yield "neurons by layer", layers(selected, scores.sizes)
    say(f"modalities: hidden states and attention, seed {seed}")
    seen = {task: samples[:N_STATES] for task, samples in tasks.items()}
    yield "hidden states", states(model, seen)
    yield "phenomena", _seen(model, seen)
    yield "last token", attention(model, seen, selected[CLOSER_RATIO], seed=seed)


def masked(
    model: HookedVLM,
    scores: miner.ModalityScores,
    tasks: Samples,
    *,
    ratios: Sequence[float],
    seed: int,
) -> pd.DataFrame:
    """The accuracy of each task without each set, and without as many of the same layers."""
    curve = masking_curve(model, scores, tasks, ratios=ratios, seeds=[seed], **OPTIONS)
    frame = curve.to_dataframe().rename(columns={"ratio": "share"})
    theirs = _wide(frame[frame["control"]], KEYS["masked"])
    ours = _wide(frame[~frame["control"]], KEYS["masked"])
    theirs = theirs.drop(columns="neurons").rename(columns={n: f"random: {n}" for n in tasks})
    return ours.merge(theirs, on=list(KEYS["masked"]), how="left")


def by_kind(
    model: HookedVLM, scores: miner.ModalityScores, *, ratio: float, seed: int
) -> pd.DataFrame:
    """Questions and descriptions apart, of images and of texts, without the text neurons."""
    kinds: Samples = {}
    for task in ("image", "text"):
        samples = make_samples(split="test", task=task, n=N_TESTED, seed=seed)
        kinds[f"{task}, questions"] = [s for s in samples if s.category != DESCRIPTION]
        whole = "caption" if task == "image" else task
        n = N_TESTED * (1 if task == "image" else len(CATEGORIES[task]))
        samples = make_samples(split="test", task=whole, n=n, seed=seed)
        kinds[f"{task}, descriptions"] = [s for s in samples if s.category == DESCRIPTION]
    curve = masking_curve(
        model, scores, kinds, ratios=[ratio], modalities=["text"], seeds=[seed], **OPTIONS
    )
    frame = curve.to_dataframe()
    frame["masked"] = [
        "random" if c else n for n, c in zip(frame["masked"], frame["control"], strict=True)
    ]
    return _wide(frame, KEYS["by kind of answer"])


def by_strategy(model: HookedVLM, scores: miner.ModalityScores, tasks: Samples) -> pd.DataFrame:
    """The accuracy of each task without the sets that other strategies select."""
    frames = []
    for strategy in STRATEGIES[1:]:
        curve = masking_curve(
            model, scores, tasks, ratios=[CLOSER_RATIO], strategy=strategy, seeds=(), **OPTIONS
        )
        frame = curve.to_dataframe().assign(strategy=strategy)
        frames.append(frame[frame["masked"] != CLEAN])
    return _wide(pd.concat(frames), KEYS["by strategy"])


def _wide(frame: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """A column with the accuracy of each task."""
    order = list(dict.fromkeys(frame["task"]))
    sizes = frame.groupby(list(keys), sort=False)["n_neurons"].first().rename("neurons")
    wide = frame.pivot_table(index=list(keys), columns="task", values="performance", sort=False)
    wide = wide[order].rename_axis(columns=None)
    return pd.concat([sizes, wide], axis=1).reset_index()


def overlaps(
    selected: Mapping[float, Mapping[str, NeuronSet]], sizes: Mapping[str, int]
) -> pd.DataFrame:
    """How much pairs of sets share, and what chance would give."""
    shown = ["a", "b", "n_a", "shared", "jaccard", "expected_jaccard", "jaccard_in_layers"]
    frames = [
        overlap(sets, sizes=sizes).to_dataframe()[shown].astype({"shared": int}).assign(share=ratio)
        for ratio, sets in selected.items()
    ]
    renamed = {"n_a": "neurons", "expected_jaccard": "by chance", "jaccard_in_layers": "in layers"}
    return pd.concat(frames)[["share", *shown]].rename(columns=renamed)


def layers(
    selected: Mapping[float, Mapping[str, NeuronSet]], sizes: Mapping[str, int]
) -> pd.DataFrame:
    """How many neurons of each set are in each layer."""
    frames = []
    for ratio, sets in selected.items():
        counts = by_layer({**sets, ALL: reduce(or_, sets.values())}, sizes=sizes).to_dataframe()
        wide = counts.pivot(index="set", columns="layer", values="n_neurons").rename_axis(
            "modality"
        )
        wide.columns = [f"layer {layer}" for layer in wide.columns]
        frames.append(wide.loc[[*sets, ALL]].reset_index().assign(share=ratio))
    return pd.concat(frames)


def states(model: HookedVLM, tasks: Samples) -> pd.DataFrame:
    """How near images and texts are at each depth."""
    found = convergence(model, tasks, batch_size=25).to_dataframe()
    pair = found[[{a, b} == {"text", "image"} for a, b in zip(found["a"], found["b"], strict=True)]]
    shown = ["depth", "knn_mixing", "cka", "cka_shuffled", "cosine"]
    where = phenomena(model, tasks, batch_size=25).to_dataframe()
    apart = where.pivot(index="depth", columns="modality", values="distance")
    apart = apart.add_suffix(" to text").rename_axis(columns=None).reset_index()
    return pair[shown].merge(apart, on="depth")


def _seen(model: HookedVLM, tasks: Samples) -> pd.DataFrame:
    """Whether there is probing, and whether special tokens are telomeres; 1 is yes."""
    found = phenomena(model, tasks, batch_size=25).table()
    return found.astype({"probing": float, "telomere": "Float64"})


def attention(
    model: HookedVLM, tasks: Samples, selected: Mapping[str, NeuronSet], *, seed: int
) -> pd.DataFrame:
    """The shares of the last token's attention, mean over layers, with each set masked."""
    with_image = {task: tasks[task] for task in ("image", "caption")}
    found = last_token_attention(
        model, with_image, selected=selected, seeds=[seed], batch_size=25
    ).to_dataframe()
    found["masked"] = found["masked"].str.replace(f", random {seed}", ", as many at random")
    wide = found.pivot_table(index="masked", columns="modality", values="mass", sort=False)
    even = found.groupby("modality", sort=False)["uniform"].mean()
    wide.loc["(if it were even)"] = even
    return wide.rename_axis(columns=None).reset_index()
