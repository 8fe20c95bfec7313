"""Which samples a neuron is explained from and tested on, and how active it is in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vlm_lens.analyses.exemplars import Exemplar, Exemplars, SampleView, scaled
from vlm_lens.analyses.explaining.split import halves
from vlm_lens.analyses.explaining.views import Views, check_component
from vlm_lens.data import Sample
from vlm_lens.model import HookedVLM
from vlm_lens.neurons import Neuron, NeuronSet
from vlm_lens.neurons.checks import check_range
from vlm_lens.neurons.sites import sites
from vlm_lens.passes.answers import Answers, AnswerSource
from vlm_lens.passes.batch import make_batch
from vlm_lens.passes.forwards import forward, hooked
from vlm_lens.passes.run import OnBatch
from vlm_lens.statistics import collect

READ = "image+text"
"""The token types that count: neither special tokens nor sounds have exemplars."""

_HALVES = ("explained_from", "tested_on")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which samples are chosen for each neuron.

    Attributes:
        top: How many of those in which it is most active, to explain it and again to test that.
        random: How many others of each, drawn from all.
        held_out: The share of the samples that explanations are tested on.
        seed: Of the split and of what is random.
        answers: What is behind the prompts; see `vlm_lens.statistics.collect`.
        max_new_tokens: At most so many tokens of an own answer.
        batch_size: How many samples run at once.

    Raises:
        ValueError: A number is out of its range.
    """

    top: int = 10
    random: int = 10
    held_out: int | float = 0.5
    seed: int = 0
    answers: AnswerSource | None = "own"
    max_new_tokens: int = 64
    batch_size: int = 16

    def __post_init__(self) -> None:
        least = {"top": 1, "random": 0, "batch_size": 1, "max_new_tokens": 1}
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise ValueError(f"expected {name} of at least {lowest}, got {getattr(self, name)}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"expected held_out between 0 and 1, got {self.held_out}")


@dataclass(frozen=True, eq=False)
class Gathered:
    """What neurons can be explained from and tested on.

    Attributes:
        explained: By neuron, what it is explained from.
        held_out: By neuron, what its explanation is tested on.
        silent: Neurons with nothing to explain, and why.
        left_out: Samples that do not count, and why.
    """

    explained: dict[Neuron, Exemplars]
    held_out: dict[Neuron, Exemplars]
    silent: dict[Neuron, str] = field(default_factory=dict)
    left_out: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Chosen:
    """The samples of one half: by neuron the top ones, and the random ones of all neurons."""

    top: dict[Neuron, list[int]]
    random: list[int]
    left_out: dict[int, str]

    def of(self, neuron: Neuron) -> list[int]:
        return list(dict.fromkeys([*self.top[neuron], *self.random]))


def gather(
    model: HookedVLM,
    samples: Sequence[Sample],
    neurons: NeuronSet,
    choice: Choice,
    *,
    checkpoint: Path | None = None,
    on_batch: OnBatch | None = None,
) -> Gathered:
    """Finds each neuron's top samples in both halves, and reads it there and in random ones.

    Samples are split before anything is chosen, and those that show the same images (or ask the
    same without images) stay together, so that no explanation is tested on what it was made from.

    Args:
        model: The model.
        samples: The data set.
        neurons: Which neurons.
        choice: Which samples.
        checkpoint: A folder for the two passes that look for top samples, which go on from there.
        on_batch: Called after each batch with the number of batches done and of all, pass by pass.

    Raises:
        ValueError: The samples cannot be split, none of a half can be used, or positions at a
            hook point have no place.
        HookNameError: A neuron is at no hook point of the model.
        IndexError: A hook point has fewer neurons.
    """
    check_neurons(model, samples, neurons)
    parts = halves(samples, held_out=choice.held_out, seed=choice.seed)
    folders = [None if checkpoint is None else checkpoint / name for name in _HALVES]
    chosen = [
        _choose(model, samples, part, neurons, choice, folder, on_batch)
        for part, folder in zip(parts, folders, strict=True)
    ]
    wanted: dict[int, dict[str, list[int]]] = {}
    for half in chosen:
        for neuron in neurons:
            for number in half.of(neuron):
                wanted.setdefault(number, {}).setdefault(neuron.name, []).append(neuron.index)
    read = _read(model, samples, wanted, choice, on_batch)
    left_out = {number: why for half in chosen for number, why in half.left_out.items()}
    found = Gathered({}, {}, left_out=left_out)
    for neuron in neurons:
        _add(found, neuron, *chosen, read=read)
    return found


def check_neurons(model: HookedVLM, samples: Sequence[Sample], neurons: NeuronSet) -> None:
    """Checks, with one sample, that a model has these neurons and that they can be shown.

    Raises:
        ValueError: Positions at a hook point have no place.
        HookNameError: A neuron is at no hook point of the model.
        IndexError: A hook point has fewer neurons.
    """
    names = sites(model, list(neurons.names))
    for name in names:
        check_component(name)
    sample = next((sample for sample in samples if sample.images), samples[0])
    try:
        batch = make_batch(model, [sample], Answers())
    except (OSError, ValueError):
        return  # it will be left out
    sizes: dict[str, int] = {}
    views = Views(batch)

    def note(tensor: Tensor, hook: HookPoint) -> None:
        views.of(str(hook.name), tensor.shape[0], tensor.shape[1])
        sizes[str(hook.name)] = tensor.shape[-1]

    with hooked(model, [(names, note)]):
        forward(model, batch)
    check_range({name: some.tolist() for name, some in neurons.indices.items()}, sizes)


def _choose(
    model: HookedVLM,
    samples: Sequence[Sample],
    part: Sequence[int],
    neurons: NeuronSet,
    choice: Choice,
    checkpoint: Path | None,
    on_batch: OnBatch | None,
) -> _Chosen:
    """The top samples of every neuron among one half, by their numbers in the whole."""
    found = collect(
        model,
        [samples[number] for number in part],
        sites=list(neurons.names),
        token_types=[READ],
        top_k=choice.top,
        answers=choice.answers,
        max_new_tokens=choice.max_new_tokens,
        batch_size=choice.batch_size,
        checkpoint=checkpoint,
        on_batch=on_batch,
    )
    top = dict.fromkeys(neurons, [])
    for name, indices in neurons.indices.items():
        if name not in found.sites:
            continue
        values, places = found.top[name].values, found.top[name].samples
        for index in indices.tolist():
            active = places[values[:, index] > 0, index].tolist()
            top[Neuron(name, index)] = [part[place] for place in active]
    usable = [number for place, number in enumerate(part) if place not in found.left_out]
    order = np.random.default_rng([choice.seed, part[0]]).permutation(len(usable))
    random = sorted(usable[place] for place in order[: choice.random].tolist())
    return _Chosen(top, random, {part[place]: why for place, why in found.left_out.items()})


Wanted = Mapping[int, Mapping[str, Sequence[int]]]
Read = dict[tuple[Neuron, int], tuple[SampleView, Float[np.ndarray, " n"]]]


@torch.no_grad()
def _read(
    model: HookedVLM,
    samples: Sequence[Sample],
    wanted: Wanted,
    choice: Choice,
    on_batch: OnBatch | None,
) -> Read:
    """The activations of neurons in samples: by neuron and sample, as far as they are wanted."""
    numbers = sorted(wanted, key=lambda number: (bool(samples[number].images), number))
    starts = range(0, len(numbers), choice.batch_size)
    answers = Answers(choice.answers, choice.max_new_tokens)
    found: Read = {}
    for done, start in enumerate(starts, start=1):
        some = numbers[start : start + choice.batch_size]
        batch = make_batch(model, [samples[number] for number in some], answers, numbers=some)
        names = list(dict.fromkeys(name for number in some for name in wanted[number]))
        with hooked(model, [(names, _reader(found, wanted, Views(batch)))]):
            forward(model, batch)
        if on_batch is not None:
            on_batch(done, len(starts))
    return found


def _reader(found: Read, wanted: Wanted, views: Views) -> Callable[..., None]:
    """A hook that keeps what is wanted of a batch."""

    def keep(tensor: Tensor, hook: HookPoint) -> None:
        name, flat = str(hook.name), tensor.detach().flatten(0, 1)
        for placed in views.of(name, tensor.shape[0], tensor.shape[1]):
            view = placed.view
            indices = wanted[view.number].get(name, [])
            values = flat[placed.rows.to(flat.device)][:, indices].float().cpu().numpy()
            for index, column in zip(indices, values.T, strict=True):
                found[Neuron(name, index), view.number] = (view, column.copy())

    return keep


def _add(found: Gathered, neuron: Neuron, explain: _Chosen, test: _Chosen, *, read: Read) -> None:
    """One neuron's exemplars, on a scale that its largest activation in either half ends."""
    seen = {
        number: read[neuron, number]
        for half in (explain, test)
        for number in half.of(neuron)
        if (neuron, number) in read and len(read[neuron, number][0])
    }
    top = [number for number in explain.top[neuron] if number in seen]
    maximum = max((float(values.max()) for _, values in seen.values()), default=0.0)
    if not top or not any(float(seen[number][1].max()) > 0 for number in top):
        found.silent[neuron] = "it is never active in the samples that it would be explained from"
        return
    for half, place in ((explain, found.explained), (test, found.held_out)):
        chosen = [number for number in half.top[neuron] if number in seen]
        others = [number for number in half.random if number in seen and number not in chosen]
        top_ones, random_ones = (
            tuple(Exemplar(seen[n][0], scaled(seen[n][1], maximum)) for n in numbers)
            for numbers in (chosen, others)
        )
        place[neuron] = Exemplars(neuron, top_ones, random_ones, maximum)
