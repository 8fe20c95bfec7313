"""The options that say which model and which samples, and reading the samples."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_lens import shapes_smollm2
from vlm_lens.cli.checks import InputError, check_device, reading_input
from vlm_lens.cli.threads import fit_threads
from vlm_lens.cli.values import named

if TYPE_CHECKING:
    from vlm_lens.data import Sample
    from vlm_lens.model import HookedVLM

BUNDLED = "shapes-llava"
"""The name of the bundled model, and of the world that it was trained on."""

WORLDS = (BUNDLED, shapes_smollm2.NAME)
"""Models that have a world of this name, in their own words."""

TASKS = ("image", "caption", "text")
"""What can be asked about the world."""

_DATA = "folder of images with a metadata.jsonl, or name of a Hugging Face data set"
_FORMAT = (
    'A folder\'s metadata.jsonl has a line for each sample, such as {"file_name": "cat.png", '
    '"text": "what is on the sofa ?", "answer": "a cat", "category": "pets"}: "file_name" is '
    'relative to the folder; "answer" and "category" may be left out, all else is an annotation.'
)
_WORLD = f"the world of {BUNDLED}, drawn on demand"
_WORDS = 100
_OF_DATA = ("data", "task", "split", "target")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say which model, and where it runs."""
    add = parser.add_argument_group("model").add_argument
    add(
        "--model",
        type=named,
        default=BUNDLED,
        metavar="NAME",
        help=f"model folder, Hugging Face id or {WORLDS[1]} (default: %(default)s, bundled)",
    )
    add("--device", metavar="NAME", help="where the model runs, e.g. cuda (default: the CPU)")
    choices = ("float32", "bfloat16", "float16")
    add("--dtype", choices=choices, help="of its weights (default: as they are stored)")


def add_data(parser: argparse.ArgumentParser, *, text: str, what: str) -> argparse._ArgumentGroup:
    """Adds the options that say which samples.

    Args:
        parser: Where to.
        text: What ``--text`` takes.
        what: What that is.

    Returns:
        The group of these options, for further ones.
    """
    group = add_source(parser, task="image")
    add = group.add_argument
    add("--text", type=named, metavar=text, help=what)
    words = f"of a passage, where --text is a file (default: {_WORDS})"
    add("--words", type=int, metavar="N", help=words)
    target = "score the model's own answers or those of the data (default: own)"
    add("--target", choices=("own", "answer"), help=target)
    add_longest(group, default=20)
    return group


def add_source(parser: argparse.ArgumentParser, *, task: str) -> argparse._ArgumentGroup:
    """Adds the options that say where samples come from.

    Args:
        parser: Where to.
        task: What is asked about the world by default.

    Returns:
        The group of these options, for further ones.
    """
    group = parser.add_argument_group("samples", _FORMAT)
    add = group.add_argument
    add("--data", type=named, metavar="NAME", help=f"{_DATA} (default: {_WORLD})")
    add("--task", choices=TASKS, help=f"what is asked about the world (default: {task})")
    add("--split", type=named, metavar="NAME", help="of the world or the data set (default: test)")
    return group


def add_sources(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Adds the options that say where several data sets come from; returns their group."""
    group = parser.add_argument_group("samples", _FORMAT)
    add = group.add_argument
    what = f"{_DATA}; may be given several times (default: {_WORLD})"
    add("--data", type=named, action="append", metavar="NAME", help=what)
    tasks = "what is asked about the world, a data set each (default: all)"
    add("--tasks", nargs="+", choices=TASKS, metavar="NAME", help=tasks)
    add("--split", type=named, metavar="NAME", help="of the world or the data sets (default: test)")
    return group


def add_number(group: argparse._ArgumentGroup, *, default: int, of: str = "") -> None:
    """Adds the options that say how many samples, and which ones of the world.

    Args:
        group: Where to.
        default: How many by default.
        of: What so many are taken of, such as " of each data set".
    """
    many = f"how many samples{of} (default: %(default)s)"
    group.add_argument("--n", type=int, default=default, metavar="N", help=many)
    seed = "of the world's samples (default: %(default)s)"
    group.add_argument("--seed", type=int, default=0, metavar="N", help=seed)


def add_longest(group: argparse._ArgumentGroup, *, default: int) -> None:
    """Adds the option that says how long answers may be."""
    tokens = "longest answer (default: %(default)s)"
    group.add_argument("--max-new-tokens", type=int, default=default, metavar="N", help=tokens)


def add_batch_size(group: argparse._ArgumentGroup) -> None:
    """Adds the option that says how much runs at once."""
    size = "samples that run at once (default: %(default)s)"
    group.add_argument("--batch-size", type=int, default=16, metavar="N", help=size)


def add_seeds(group: argparse._ArgumentGroup) -> None:
    """Adds the option that says which random controls."""
    seeds = "of the random controls (default: 0 1 2)"
    group.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help=seeds)


def check_least(arguments: argparse.Namespace, **least: int) -> None:
    """Refuses options that are too small.

    Args:
        arguments: What was given.
        **least: The smallest value of each option; those that are not given have none.

    Raises:
        InputError: One is smaller.
    """
    for name, lowest in least.items():
        if getattr(arguments, name) is not None and getattr(arguments, name) < lowest:
            option = name.replace("_", "-")
            raise InputError(
                f"expected --{option} of at least {lowest}, got {getattr(arguments, name)}"
            )


def check_text_alone(arguments: argparse.Namespace) -> None:
    """Refuses options that are about other samples than those of ``--text``.

    Raises:
        InputError: There is such an option.
    """
    if arguments.text is None:
        if arguments.words is not None:
            raise InputError("--words is about the file of --text")
        return
    for name in _OF_DATA:
        if getattr(arguments, name) is not None:
            raise InputError(f"--text is scored itself, so --{name} has no meaning with it")


def world_of(arguments: argparse.Namespace) -> str:
    """The world that a model was trained on, or that of the bundled one."""
    return arguments.model if arguments.model in WORLDS else BUNDLED


def read_samples(
    arguments: argparse.Namespace, *, n: int, seed: int, task: str = "image"
) -> list[Sample]:
    """The first samples that are asked for by ``--data``, ``--task`` and ``--split``.

    Args:
        arguments: What was given.
        n: How many at most.
        seed: Which ones of the world.
        task: What is asked about the world if nothing is said.

    Raises:
        InputError: They cannot be read.
    """
    from vlm_lens.data import load_samples

    name = arguments.data or world_of(arguments)
    if arguments.task is not None and name not in WORLDS:
        raise InputError(f"--task is about the world of {BUNDLED}, not about {name!r}")
    with reading_input():
        return load_samples(
            name,
            split=arguments.split or "test",
            task=arguments.task or task,
            n=n,
            seed=seed,
        )


def read_datasets(arguments: argparse.Namespace, *, n: int, seed: int) -> dict[str, list[Sample]]:
    """The first samples of each data set that is asked for, by ``--data`` or ``--tasks``.

    Raises:
        InputError: They cannot be read, or one is named twice.
    """
    from vlm_lens.data import load_samples

    split, given = arguments.split or "test", arguments.data or [world_of(arguments)]
    _check_different(given)
    if arguments.tasks is not None and not {*WORLDS} & {*given}:
        raise InputError(f"--tasks is about the world of {BUNDLED}, not about {given[0]!r}")
    found: dict[str, list[Sample]] = {}
    for name in given:
        for task in (arguments.tasks or TASKS) if name in WORLDS else ("",):
            called = task or _short(name, given)
            if called in found:
                raise InputError(f"the data set {called!r} is named twice")
            with reading_input():
                asked = {"task": task} if task else {}
                found[called] = load_samples(name, split=split, n=n, seed=seed, **asked)
    return found


def _check_different(given: Sequence[str]) -> None:
    """Refuses one data set under two names, which would count as two."""
    from vlm_lens.by_name import is_folder

    places: dict[str, str] = {}
    for one in given:
        place = os.path.realpath(os.path.expanduser(one)) if is_folder(one) else one
        if place in places:
            also = "" if places[place] == one else f" (as {places[place]!r} too)"
            raise InputError(f"the data set {one!r} is named twice{also}")
        places[place] = one


def _short(name: str, given: Sequence[str]) -> str:
    """The name of a folder without those that it is in, unless others are called so too."""
    from vlm_lens.by_name import is_folder

    if not is_folder(name):
        return name
    short = Path(name).expanduser().resolve().name
    alike = [other for other in (*TASKS, *given) if Path(other).name == short]
    return name if len(alike) > 1 else short


def read_passages(arguments: argparse.Namespace, *, n: int) -> list[Sample]:
    """The first passages of the file that ``--text`` names.

    Raises:
        InputError: They cannot be read.
    """
    from vlm_lens.data.text import load_texts

    with reading_input():
        words = _WORDS if arguments.words is None else arguments.words
        return load_texts(arguments.text, n=n, words=words)


def checksums(model: HookedVLM, samples: Sequence[Sample]) -> dict[str, str]:
    """What the model and the samples are, apart from their names."""
    from vlm_lens.data.digest import digest_of_samples
    from vlm_lens.results.provenance import digest_of_weights

    return {"weights": digest_of_weights(model.hf_model), "samples": digest_of_samples(samples)}


def load_model(arguments: argparse.Namespace) -> HookedVLM:
    """Loads the model that is asked for.

    Raises:
        InputError: That does not work.
    """
    import torch

    from vlm_lens.model import HookedVLM

    check_device(arguments.device)
    dtype = {} if arguments.dtype is None else {"dtype": getattr(torch, arguments.dtype)}
    with reading_input():
        model = HookedVLM.from_pretrained(arguments.model, device=arguments.device, **dtype)
    fit_threads(model)
    return model
