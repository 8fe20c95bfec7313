"""The options that say which image, and what is asked about it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vlm_lens import shapes_smollm2
from vlm_lens.cli.checks import InputError
from vlm_lens.cli.values import path

if TYPE_CHECKING:
    from PIL.Image import Image


def add_question(add: Callable[..., Any]) -> None:
    """Adds the options.

    Args:
        add: ``add_argument`` of a parser or a group.
    """
    add("--image", type=path, metavar="PATH", help="image file (default: a bundled one)")
    add("--question", metavar="TEXT", help="question about it (default: the bundled image's)")


def check_question(arguments: argparse.Namespace) -> None:
    """Refuses an image that nothing is asked about, and an empty question.

    Raises:
        InputError: There is no question.
    """
    if arguments.image is not None and arguments.question is None:
        raise InputError("--image needs a --question about it")
    if arguments.question is not None and not arguments.question.strip():
        raise InputError("--question is empty: ask something, or leave it out")


def read_question(arguments: argparse.Namespace, *, bundled: int) -> tuple[Image, str]:
    """The image and the question.

    Args:
        arguments: Those of the command.
        bundled: Which of the bundled images stands in for what is not given.

    Raises:
        OSError, ValueError: The image cannot be read.
    """
    from vlm_lens.data.imagefolder import load_imagefolder
    from vlm_lens.inputs import load_image
    from vlm_lens.shapes_llava import IMAGES

    if arguments.image is not None:
        return load_image(arguments.image), arguments.question
    sample = load_imagefolder(IMAGES, n=bundled + 1)[bundled]
    if arguments.model == shapes_smollm2.NAME:
        from vlm_lens.shapes_smollm2.world import in_english

        sample = in_english(sample)
    return sample.images[0], sample.text if arguments.question is None else arguments.question
