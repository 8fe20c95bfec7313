"""The options that say which model and which samples, and reading the samples."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vlm_lens.cli.checks import InputError, check_device, reading_input
from vlm_lens.cli.threads import fit_threads

if TYPE_CHECKING:
    from vlm_lens.data import Sample
    from vlm_lens.model import HookedVLM

BUNDLED = "shapes-llava"
"""The name of the bundled model, and of the world that it was trained on."""

_WORDS = 100
_OF_DATA = ("data", "task", "split", "target")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say which model, and where it runs."""
    add = parser.add_argument_group("model").add_argument
    add(
        "--model",
        default=BUNDLED,
        metavar="NAME",
        help="model folder or Hugging Face id (default: %(default)s, bundled)",
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
    group = parser.add_argument_group("samples")
    add = group.add_argument
    name = "folder of images with a metadata.jsonl, or name of a Hugging Face data set"
    add("--data", metavar="NAME", help=f"{name} (default: {BUNDLED}, its world, drawn on demand)")
    tasks = ("image", "caption", "text")
    add("--task", choices=tasks, help="what is asked about the world (default: image)")
    add("--split", metavar="NAME", help="of the world or the data set (default: test)")
    add("--text", metavar=text, help=what)
    words = f"of a passage, where --text is a file (default: {_WORDS})"
    add("--words", type=int, metavar="N", help=words)
    target = "score the model's own answers or those of the data (default: own)"
    add("--target", choices=("own", "answer"), help=target)
    tokens = "longest answer (default: %(default)s)"
    add("--max-new-tokens", type=int, default=20, metavar="N", help=tokens)
    return group


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


def read_samples(arguments: argparse.Namespace, *, n: int, seed: int) -> list[Sample]:
    """The first samples that are asked for by ``--data``, ``--task`` and ``--split``.

    Raises:
        InputError: They cannot be read.
    """
    from vlm_lens.data import load_samples

    name = arguments.data or BUNDLED
    if arguments.task is not None and name != BUNDLED:
        raise InputError(f"--task is about the world of {BUNDLED}, not about {name!r}")
    with reading_input():
        return load_samples(
            name,
            split=arguments.split or "test",
            task=arguments.task or "image",
            n=n,
            seed=seed,
        )


def read_passages(arguments: argparse.Namespace, *, n: int) -> list[Sample]:
    """The first passages of the file that ``--text`` names.

    Raises:
        InputError: They cannot be read.
    """
    from vlm_lens.data.text import load_texts

    with reading_input():
        words = _WORDS if arguments.words is None else arguments.words
        return load_texts(arguments.text, n=n, words=words)


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
