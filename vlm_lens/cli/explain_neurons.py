"""Which neurons ``vlm-lens explain`` explains: named ones, or the best or some of a layer."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from vlm_lens.cli.checks import InputError, reading_input

if TYPE_CHECKING:
    import torch

    from vlm_lens.data import Sample
    from vlm_lens.model import HookedVLM
    from vlm_lens.neurons import NeuronSet

_RANDOM = 100
"""Fewer than 20 can hardly be told from chance, since each has so few others."""

_WHERE = ("sites", "component", "layer")


def add_neurons(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say which neurons."""
    group = parser.add_argument_group("neurons")
    add = group.add_mutually_exclusive_group().add_argument
    names = "their names, such as 'blocks.3.mlp.hook_act[17]'"
    add("--neurons", nargs="+", metavar="NAME", help=names)
    add("--set", metavar="FILE", help="file of a NeuronSet, as NeuronSet.save writes it")
    top = "those with the largest activation at any patch or token of the samples"
    add("--top", type=int, metavar="N", help=top)
    some = f"so many at random, by --seed (default: {_RANDOM})"
    add("--random", type=int, metavar="N", help=some)
    add = group.add_argument
    sites = "of --top and --random: act, output, post, or a glob of hook names (default: act)"
    add("--sites", metavar="NAME", help=sites)
    add("--component", metavar="NAME", help="only of this one, such as projector (default: all)")
    add("--layer", nargs="+", type=int, metavar="N", help="only of these (default: all)")


def named_neurons(arguments: argparse.Namespace) -> NeuronSet | None:
    """The neurons that are named one by one; None if they are to be chosen.

    Raises:
        InputError: They cannot be read, or options do not go together.
    """
    for name in ("top", "random"):
        if (number := getattr(arguments, name)) is not None and number < 1:
            raise InputError(f"expected --{name} of at least 1, got {number}")
    if arguments.neurons is None and arguments.set is None:
        return None
    for name in _WHERE:
        if getattr(arguments, name) is not None:
            raise InputError(f"--{name} is about --top and --random; these neurons are named")
    from vlm_lens.neurons import Neuron, NeuronSet

    with reading_input():
        if arguments.neurons is not None:
            found = NeuronSet(map(Neuron.parse, arguments.neurons))
        else:
            found = NeuronSet.load(arguments.set)
    if not len(found):
        raise InputError(f"there are no neurons in {arguments.set!r}")
    return found


def check_named(model: HookedVLM, samples: Sequence[Sample], neurons: NeuronSet) -> None:
    """Refuses neurons that the model does not have, or that cannot be shown.

    Raises:
        InputError: There is such a neuron.
    """
    from vlm_lens.analyses.explaining.gather import check_neurons

    try:
        with reading_input():
            check_neurons(model, samples, neurons)
    except IndexError as error:
        raise InputError(str(error)) from error


def places(model: HookedVLM, arguments: argparse.Namespace) -> list[str]:
    """The hook points that neurons are chosen from.

    Raises:
        InputError: There are none, or their positions have no place.
    """
    from vlm_lens.analyses.explaining.views import COMPONENTS
    from vlm_lens.neurons.neuron import split_name
    from vlm_lens.neurons.sites import sites

    with reading_input():
        names = sites(model, arguments.sites or "act", component=arguments.component)
    names = [name for name in names if split_name(name)[0] in COMPONENTS]
    if not names:
        raise InputError(
            f"none of these hook points is in a component whose positions have a place: expected "
            f"one of {', '.join(COMPONENTS)}"
        )
    if arguments.layer is None:
        return names
    layers = {name: split_name(name)[1] for name in names}
    known = sorted({layer for layer in layers.values() if layer is not None})
    if missing := [layer for layer in arguments.layer if layer not in known]:
        has = f"layers {known[0]} to {known[-1]}" if known else "no layers"
        raise InputError(f"there is no layer {missing[0]} at these hook points: there are {has}")
    return [name for name, layer in layers.items() if layer in arguments.layer]


def choose(
    model: HookedVLM, samples: Sequence[Sample], names: Sequence[str], arguments: argparse.Namespace
) -> NeuronSet:
    """The neurons of ``--top`` or ``--random``.

    Raises:
        InputError: There are not so many.
    """
    import torch

    from vlm_lens.neurons import NeuronSet

    is_random = arguments.top is None
    if is_random:  # to know how many there are, one sample is enough
        samples = [next((sample for sample in samples if sample.images), samples[0])]
    largest = _largest(model, samples, names, arguments)
    n, total = arguments.top or arguments.random or _RANDOM, sum(map(len, largest.values()))
    if n > total:
        raise InputError(f"expected at most {total:,} neurons, as there are, got {n:,}")
    if not is_random:
        return NeuronSet.from_scores(largest, k=n)
    generator = torch.Generator().manual_seed(arguments.seed)
    drawn = torch.rand(total, generator=generator)
    scores = drawn.split([len(values) for values in largest.values()])
    found = NeuronSet.from_scores(dict(zip(largest, scores, strict=True)), k=n)
    return NeuronSet(sorted(found), sizes=found.sizes)


def _largest(
    model: HookedVLM, samples: Sequence[Sample], names: Sequence[str], arguments: argparse.Namespace
) -> Mapping[str, torch.Tensor]:
    """The largest activation of each neuron, over patches and tokens."""
    from vlm_lens.analyses.explaining.gather import READ
    from vlm_lens.statistics import collect

    with reading_input():
        found = collect(
            model,
            samples,
            sites=list(names),
            token_types=[READ],
            top_k=0,
            batch_size=arguments.batch_size,
        )
    return {name: values[READ] for name, values in found.max.items()}
