"""The command line: ``vlm-lens demo`` and ``vlm-lens models``.

Progress goes to stderr and the result to stdout. A mistake in the input ends the run with one line
on stderr and exit code 2; anything else that goes wrong is a bug and shows its traceback.

Libraries are imported where they are needed: ``--help`` and a mistyped path need no torch.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_lens.report.versions import package_version

if TYPE_CHECKING:
    from PIL.Image import Image

BUNDLED = "shapes-llava"


class InputError(Exception):
    """Something that the user gave does not work; the message says what and why."""


@contextmanager
def _input() -> Iterator[None]:
    """Marks where input is read: an error there is the input's, and its message is for the user."""
    try:
        yield
    except (OSError, TypeError, ValueError) as error:
        raise InputError(" ".join(str(error).split())) from error


DEMO_SAMPLE = 3
"""Which of the bundled images: one whose answer a few neurons decide, which is not true of all."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: The arguments; by default those of the process.

    Returns:
        The exit code: 0, or 2 if the input does not work.

    Raises:
        SystemExit: With code 2 if the arguments make no sense, 0 after ``--help`` or ``--version``.
    """
    argv = sys.argv[1:] if argv is None else argv
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments, command=shlex.join(["vlm-lens", *argv]))
    except InputError as error:
        print(f"vlm-lens {arguments.name}: error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vlm-lens", description="Look inside vision-language models, down to single neurons."
    )
    version = f"vlm-lens {package_version('vlm-lens')}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(dest="name", required=True, metavar="COMMAND")
    _add_demo(commands)
    what = "list the models that are supported, part by part"
    commands.add_parser("models", help=what, description=what.capitalize()).set_defaults(
        run=_models
    )
    return parser


def _add_demo(commands: argparse._SubParsersAction) -> None:
    what = "find the neurons behind an answer, remove them, and write a report"
    demo = commands.add_parser(
        "demo", help=what, description=f"Answer a question about an image, {what}."
    )
    demo.set_defaults(run=_demo)
    add = demo.add_argument
    add("--image", type=Path, metavar="PATH", help="image file (default: a bundled one)")
    add("--question", metavar="TEXT", help="question about it (default: the bundled image's)")
    add(
        "--model",
        default=BUNDLED,
        metavar="NAME",
        help="model folder or Hugging Face id (default: %(default)s, bundled)",
    )
    add("--device", metavar="NAME", help="where the model runs, e.g. cuda (default: the CPU)")
    add("--top", type=int, default=60, metavar="N", help="neurons to remove (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the random control neurons (default: %(default)s)")
    add(
        "--out",
        type=Path,
        default=Path("report.html"),
        metavar="PATH",
        help="the report (default: %(default)s)",
    )


def _demo(arguments: argparse.Namespace, *, command: str) -> None:
    """Everything that can be refused is refused before the model is loaded, or right after it."""
    from vlm_lens.report.write import check_target, write_report

    with _input():
        check_target(arguments.out)
        image, question = _image_and_question(arguments.image, arguments.question)
    step = _Steps()
    from vlm_lens.model import HookedVLM
    from vlm_lens.report.page import render_report
    from vlm_lens.report.study import check_study, study_answer

    step(f"loading {arguments.model}")
    with _input():
        model = HookedVLM.from_pretrained(arguments.model, device=arguments.device)
        inputs = model.prepare(images=image, text=question)
        check_study(model, inputs, top=arguments.top)
    if model.tokenizer.unk_token in inputs.token_map[0].tokens:
        step(f"note: {question!r} holds words that the model does not know")
    study = study_answer(model, inputs, top=arguments.top, seed=arguments.seed, on_step=step)
    step("writing the report")
    html = render_report(study, model_name=arguments.model, command=command)
    with _input():
        write_report(html, arguments.out)
    step(f"done: the model answers {study.outcomes[0].answer!r}")
    print(arguments.out)


def _models(_arguments: argparse.Namespace, *, command: str) -> None:  # noqa: ARG001
    """One line for each record, and what the open parts may be."""
    from vlm_lens.architectures import BLOCKS
    from vlm_lens.architectures.table import COLUMNS, OPEN, aligned, support_rows

    print(aligned([COLUMNS, *support_rows()]))
    note = (
        f"{OPEN} or another type with its modules in the same places. Blocks are known of these "
        f"types: {', '.join(BLOCKS)}. What is missing can be added: docs/add_an_architecture.md."
    )
    print("\n" + textwrap.fill(note, width=100))


def _image_and_question(path: Path | None, question: str | None) -> tuple[Image, str]:
    """The image and the question, one or both from the bundled sample."""
    from vlm_lens.data.imagefolder import load_imagefolder
    from vlm_lens.inputs import load_image
    from vlm_lens.shapes_llava import IMAGES

    if path is not None:
        if question is None:
            raise ValueError("--image needs a --question about it")
        return load_image(path), question
    sample = load_imagefolder(IMAGES, n=DEMO_SAMPLE + 1)[DEMO_SAMPLE]
    return sample.images[0], question or sample.text


class _Steps:
    """Says on stderr what comes next, and how long it has taken up to here."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def __call__(self, what: str) -> None:
        print(f"[{time.monotonic() - self._start:5.1f} s] {what}", file=sys.stderr, flush=True)
