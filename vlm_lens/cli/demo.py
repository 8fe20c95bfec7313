"""``vlm-lens demo``: from an image and a question to the neurons behind the answer."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_lens.cli.checks import check_device, reading_input
from vlm_lens.cli.imports import importing
from vlm_lens.cli.progress import Steps
from vlm_lens.cli.question import add_question, check_question, read_question
from vlm_lens.cli.samples import BUNDLED
from vlm_lens.cli.threads import fit_threads
from vlm_lens.cli.values import named, path

if TYPE_CHECKING:
    from PIL.Image import Image

    from vlm_lens.data import Sample
    from vlm_lens.inputs import Inputs
    from vlm_lens.model import HookedVLM
    from vlm_lens.report.study import AnswerStudy

DEMO_SAMPLE = 3
"""Which of the bundled images: one whose answer a few neurons decide, which is not true of all."""

N_COLLAPSE, N_MODALITIES, N_EXPLAINED = 6, 16, 32
"""On so many questions about the bundled model's world the demo looks for its critical neurons, for
those of each modality, and for what some of them react to."""

_LONGEST = 4
"""The answers there are a word or two, and the end."""

_ALONE = "Measured on this question alone."
_LEFT_OUT = (
    f"With another model than {BUNDLED} there are no sections about modalities and explanations: "
    "they take many samples, and explanations annotated ones."
)


def add(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the parser."""
    what = "find the neurons behind an answer, remove them, and write a report"
    parser = commands.add_parser(
        "demo", help=what, description=f"Answer a question about an image, {what}."
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add_question(add)
    add(
        "--model",
        type=named,
        default=BUNDLED,
        metavar="NAME",
        help="model folder or Hugging Face id (default: %(default)s, bundled)",
    )
    add("--device", metavar="NAME", help="where the model runs, e.g. cuda (default: the CPU)")
    add("--top", type=int, default=60, metavar="N", help="neurons to remove (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the random control neurons (default: %(default)s)")
    add(
        "--out",
        type=path,
        default=Path("report.html"),
        metavar="PATH",
        help="the report (default: %(default)s)",
    )


def run(arguments: argparse.Namespace, *, command: str) -> None:
    """Everything that can be refused is refused before the model is loaded, or right after it."""
    check_question(arguments)
    step = Steps()
    with importing():
        from vlm_lens.data import Sample
        from vlm_lens.pages.write import check_target, write_report
        from vlm_lens.report.page import render_report
        from vlm_lens.report.study import study_answer
    with reading_input():
        check_target(arguments.out)
        image, question = read_question(arguments, bundled=DEMO_SAMPLE)
    check_device(arguments.device)
    model, inputs = _loaded(arguments, image, question, step)
    study = study_answer(model, inputs, top=arguments.top, seed=arguments.seed, on_step=step)
    found = _found(model, study, Sample(images=[image], text=question), arguments.model, step)
    step("writing the report")
    html = render_report(study, **found, model_name=arguments.model, command=command)
    with reading_input():
        write_report(html, arguments.out)
    step(f"done: the model answers {study.outcomes[0].answer!r}")
    print(arguments.out)


def _loaded(
    arguments: argparse.Namespace, image: Image, question: str, step: Steps
) -> tuple[HookedVLM, Inputs]:
    """The model, and the question as it reads it."""
    from vlm_lens.model import HookedVLM
    from vlm_lens.report.study import check_study

    step(f"loading {arguments.model}")
    with reading_input():
        model = HookedVLM.from_pretrained(arguments.model, device=arguments.device)
        inputs = model.prepare(images=image, text=question)
        check_study(model, inputs, top=arguments.top)
    fit_threads(model)
    if model.tokenizer.unk_token in inputs.token_map[0].tokens:
        step(f"note: {question!r} holds words that the model does not know")
    return model, inputs


def _found(
    model: HookedVLM, study: AnswerStudy, asked: Sample, name: str, step: Steps
) -> dict[str, Any]:
    """What the page tells beside the answer: as much as there are samples for."""
    from vlm_lens.data import load_samples
    from vlm_lens.report.demo_collapse import search_collapse
    from vlm_lens.report.demo_explained import explain_candidates
    from vlm_lens.report.demo_modalities import study_modalities

    if name != BUNDLED:
        collapse = search_collapse(model, [asked], on_step=step)
        return {"collapse": collapse, "about": _ALONE, "left_out": _LEFT_OUT}
    with importing():  # scikit-learn's digits are in the images
        samples = load_samples(BUNDLED, n=N_EXPLAINED)
    return {
        "collapse": search_collapse(model, samples[:N_COLLAPSE], longest=_LONGEST, on_step=step),
        "about": f"Measured on {N_COLLAPSE} questions about images of the model's test split.",
        "modalities": study_modalities(model, samples[:N_MODALITIES], on_step=step),
        "explained": explain_candidates(model, study, samples, on_step=step),
    }
