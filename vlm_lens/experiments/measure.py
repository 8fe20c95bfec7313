"""How well a model does its tasks, as it is and under edits."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlm_lens.counted import counted
from vlm_lens.data import Sample
from vlm_lens.data.sample import check_are_samples
from vlm_lens.edits import Edit
from vlm_lens.hooked_root import HookNeverFiredWarning
from vlm_lens.hooks import ArchitectureError
from vlm_lens.inputs import Inputs
from vlm_lens.inputs.samples import why_refused
from vlm_lens.masking.replay import replay_below
from vlm_lens.model import HookedVLM
from vlm_lens.parts import text_for
from vlm_lens.passes import Answers, make_batch
from vlm_lens.passes.answers import greedy_tokens
from vlm_lens.passes.data import Chunk, chunks_of
from vlm_lens.passes.one_pass import REFUSED
from vlm_lens.passes.run import OnBatch
from vlm_lens.ranks import in_turn

Grade = Callable[[str, Sample], float]
"""From an answer and the sample that was asked to a number from 0 (wrong) to 1 (right)."""

CLEAN = "none"
"""The name of what a model does with nothing masked."""


@dataclass(frozen=True, eq=False)
class Answered:
    """Prepared inputs with the answers that are expected, e.g. to questions about sounds.

    Attributes:
        inputs: What `HookedVLM.prepare` returns.
        answers: One for each prompt.

    Raises:
        ValueError: There is another number of answers.
    """

    inputs: Inputs
    answers: Sequence[str]

    def __post_init__(self) -> None:
        if len(self.answers) != len(self.inputs.token_map):
            raise ValueError(
                f"expected one answer for each of {len(self.inputs.token_map)} prompts, got "
                f"{len(self.answers)}"
            )


Tasks = Mapping[str, Sequence[Sample | Answered]]


def exact_match(answer: str, sample: Sample) -> float:
    """Whether an answer has the words of the expected one, case and spacing set aside.

    Example:
        >>> exact_match(" Red  circle", Sample(images=[], text="what ?", answer="red circle"))
        1.0
    """
    return float(answer.lower().split() == str(sample.answer).lower().split())


# Measuring ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Grades:
    """What each sample's answer is worth.

    Attributes:
        of: By edit (`CLEAN` among them) and task, one grade for each sample.
        samples: By task, the samples that count, in the same order.
        notes: Samples that do not count, and why.
    """

    of: dict[str, dict[str, Float[Tensor, " sample"]]]
    samples: dict[str, tuple[Sample, ...]]
    notes: tuple[str, ...]

    def drop(self, edit: str, task: str) -> tuple[float, float]:
        """By how much the mean grade falls, and the standard error of that over samples."""
        fall = self.of[CLEAN][task] - self.of[edit][task]
        return float(fall.mean()), standard_error(fall)

    def right(self, task: str) -> list[Sample]:
        """The samples that the model answers right as it is."""
        pairs = zip(self.samples[task], self.of[CLEAN][task].tolist(), strict=True)
        return [sample for sample, grade in pairs if grade == 1]


def standard_error(values: Float[Tensor, " sample"]) -> float:
    """Of the mean; 0 for a single value, of which there is none."""
    return float(values.std() / len(values) ** 0.5) if len(values) > 1 else 0.0


@torch.no_grad()
def measure(
    model: HookedVLM,
    tasks: Tasks,
    edits: Mapping[str, Edit],
    *,
    grade: Grade = exact_match,
    batch_size: int = 16,
    max_new_tokens: int = 20,
    on_batch: OnBatch | None = None,
) -> Grades:
    """Grades greedy answers, of the model as it is, and under each edit.

    What comes before the language model runs once for all of them.

    Args:
        model: The model.
        tasks: Samples with answers, by task.
        edits: By name.
        grade: What an answer is worth.
        batch_size: How many samples run at once.
        max_new_tokens: At most so many tokens of an answer.
        on_batch: Called after each batch with the number of batches done and of all.

    Returns:
        The grades. Samples without an answer, or with an empty one, those that cannot be prepared
        and those that the model makes NaN of do not count, and the notes say so.

    Raises:
        ValueError: There are no tasks, none of a task's samples counts, or an edit is called
            `CLEAN`.
        HookNameError, IndexError: Neurons are not of this model.

    Example:
        >>> from vlm_lens import HookedVLM, NeuronSet, load_samples
        >>> from vlm_lens.edits import Set
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> every = {f"blocks.{layer}.mlp.hook_act": range(384) for layer in range(6)}
        >>> tasks = {"image": load_samples("shapes-llava", n=8)}
        >>> grades = measure(model, tasks, {"all": Set(NeuronSet.from_indices(every))})
        >>> {name: float(of["image"].mean()) for name, of in grades.of.items()}
        {'none': 1.0, 'all': 0.0}
    """
    if CLEAN in edits:
        raise ValueError(f"{CLEAN!r} is the name of what the model does as it is: rename the set")
    if max_new_tokens < 1:
        raise ValueError(f"expected max_new_tokens of at least 1, got {max_new_tokens}")
    counted, notes = _counted(tasks)
    chunks = [
        *chunks_of({task: [*map(_item, items)] for task, items in counted.items()}, batch_size)
    ]
    expected = {
        name: [s for one in items for s in _samples(one)] for name, items in counted.items()
    }
    found: dict[str, dict[str, list[float]]] = {
        name: {task: [] for task in counted} for name in (CLEAN, *edits)
    }
    kept: dict[str, list[Sample]] = {task: [] for task in counted}
    refused: dict[str, list[str]] = {task: [] for task in counted}
    work = partial(_answered, model, edits, max_new_tokens)
    for done, (chunk, parts) in enumerate(in_turn(work, chunks), 1):
        task = chunk.dataset
        for numbers, answers in parts:
            if isinstance(answers, str):
                refused[task] += [answers] * len(numbers)
                continue
            samples = [expected[task][number] for number in numbers]
            kept[task] += samples
            for name, texts in answers.items():
                pairs = zip(texts, samples, strict=True)
                found[name][task] += [float(grade(*pair)) for pair in pairs]
        if on_batch is not None:
            on_batch(done, len(chunks))
    grades = {
        name: {task: torch.tensor(values).double() for task, values in by_task.items()}
        for name, by_task in found.items()
    }
    samples_of = {task: tuple(samples) for task, samples in kept.items()}
    return Grades(grades, samples_of, (*notes, *_refusals(kept, refused)))


def _refusals(
    kept: Mapping[str, Sequence[Sample]], refused: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    """Notes about samples that could not be prepared; one of each task has to be."""
    for task, reasons in refused.items():
        if not kept[task]:
            raise ValueError(
                f"none of the {len(reasons)} samples of task {task!r} can be used: {reasons[0]}"
            )
        for reason, n in Counter(reasons).items():
            yield f"{counted(n, 'sample')} of {task!r} left out: {reason}"


def _counted(tasks: Tasks) -> tuple[dict[str, list[Sample | Answered]], tuple[str, ...]]:
    """The samples that have answers, and notes about the others."""
    if not tasks:
        raise ValueError("expected at least one task, got none")
    answered, notes = {}, []
    for name, items in tasks.items():
        one_only = isinstance(items, Sample)
        check_are_samples(items if one_only else [i for i in items if not isinstance(i, Answered)])
        kept = [one for one in items if isinstance(one, Answered) or str(one.answer or "").strip()]
        if not kept:
            raise ValueError(
                f"expected samples with answers in task {name!r}, got {len(items)} without: give "
                "them answers, or leave the task out"
            )
        if missing := len(items) - len(kept):
            notes.append(f"{counted(missing, 'sample')} of {name!r} left out: they have no answer")
        answered[name] = kept
    return answered, tuple(notes)


def _item(one: Sample | Answered) -> Sample | Inputs:
    return one.inputs if isinstance(one, Answered) else one


def _samples(one: Sample | Answered) -> list[Sample]:
    """The questions with their answers."""
    if isinstance(one, Sample):
        return [one]
    pairs = zip(one.inputs.texts, one.answers, strict=True)
    return [Sample(images=[], text=text, answer=answer) for text, answer in pairs]


def _answered(
    model: HookedVLM, edits: Mapping[str, Edit], max_new_tokens: int, chunk: Chunk
) -> list[tuple[Sequence[int], dict[str, list[str]] | str]]:
    """The numbers of a batch's samples, with their answers or why there are none."""
    parts = _answers(model, chunk, edits, max_new_tokens)
    return [(part.numbers, answers) for part, answers in parts]


def _answers(
    model: HookedVLM, chunk: Chunk, edits: Mapping[str, Edit], max_new_tokens: int
) -> Iterator[tuple[Chunk, dict[str, list[str]] | str]]:
    """A batch with its answers; if something is wrong, each of its samples, or what is."""
    try:
        inputs = make_batch(model, chunk.content, Answers()).prompts
    except ArchitectureError:  # of the model, and so of all samples
        raise
    except REFUSED as error:
        if isinstance(chunk.content, Inputs):
            error.add_note(f"These are prepared inputs of task {chunk.dataset!r}.")
            raise
        found = why_refused(error)
    else:
        found = _greedy(model, inputs, edits, max_new_tokens)
    if isinstance(found, str) and len(singles := chunk.singles()) > 1:
        for single in singles:
            yield from _answers(model, single, edits, max_new_tokens)
        return
    yield chunk, found


def _greedy(
    model: HookedVLM, inputs: Inputs, edits: Mapping[str, Edit], max_new_tokens: int
) -> dict[str, list[str]] | str:
    """The greedy answers to prompts, with each edit; or why there are none."""
    names = sorted({name for edit in edits.values() for name in edit.names})
    replay = replay_below(model, names, generating=True)
    answers = {}
    for name, edit in {CLEAN: None, **edits}.items():
        hooks = [] if edit is None else edit.hooks(inputs)
        with (
            warnings.catch_warnings(),
            _nan_in_logits(model) if edit is None else nullcontext() as is_nan,
            model.hooks(hooks),
            replay.running(),
        ):
            # Mllama leaves its cross-attention layers out where there is no image.
            warnings.simplefilter("ignore", HookNeverFiredWarning)
            tokens = greedy_tokens(model, inputs, max_new_tokens=max_new_tokens)
        if is_nan and any(map(bool, is_nan)):
            return "its logits are NaN"
        n_prompt = text_for(model, "answers").n_before(inputs)
        texts = model.tokenizer.batch_decode(tokens[:, n_prompt:], skip_special_tokens=True)
        answers[name] = [text.strip() for text in texts]
    return answers


@contextmanager
def _nan_in_logits(model: HookedVLM) -> Iterator[list[Tensor]]:
    """Whether the logits that each token is chosen from have NaN in them, step by step."""
    found: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG001
        found.append(output.logits[:, -1].isnan().any())

    handle = model.hf_model.register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()
