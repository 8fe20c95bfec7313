"""How well a model does its tasks, as it is and under edits."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vlm_lens.counted import counted
from vlm_lens.data import Sample
from vlm_lens.data.sample import check_are_samples
from vlm_lens.edits import Edit
from vlm_lens.hooked_root import HookNeverFiredWarning
from vlm_lens.inputs import Inputs
from vlm_lens.masking.replay import replay_below
from vlm_lens.model import HookedVLM
from vlm_lens.parts import text_for
from vlm_lens.passes import Answers, make_batch
from vlm_lens.passes.answers import greedy_tokens
from vlm_lens.passes.data import Chunk, chunks_of
from vlm_lens.passes.one_pass import REFUSED
from vlm_lens.passes.run import OnBatch

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
        notes: Samples that do not count, and why.
    """

    of: dict[str, dict[str, Float[Tensor, " sample"]]]
    notes: tuple[str, ...]

    def drop(self, edit: str, task: str) -> tuple[float, float]:
        """By how much the mean grade falls, and the standard error of that over samples."""
        fall = self.of[CLEAN][task] - self.of[edit][task]
        return float(fall.mean()), standard_error(fall)


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
        The grades. Samples without an answer, or with an empty one, do not count, and the notes
        say so.

    Raises:
        ValueError: There are no tasks, none of a task's samples has an answer, or an edit is
            called `CLEAN`.
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
    for done, chunk in enumerate(chunks, 1):
        samples = [expected[chunk.dataset][number] for number in chunk.numbers]
        for name, answers in _answers(model, chunk, edits, max_new_tokens).items():
            pairs = zip(answers, samples, strict=True)
            found[name][chunk.dataset] += [float(grade(*pair)) for pair in pairs]
        if on_batch is not None:
            on_batch(done, len(chunks))
    grades = {
        name: {task: torch.tensor(values).double() for task, values in by_task.items()}
        for name, by_task in found.items()
    }
    return Grades(grades, notes)


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


def _answers(
    model: HookedVLM, chunk: Chunk, edits: Mapping[str, Edit], max_new_tokens: int
) -> dict[str, list[str]]:
    """The greedy answers to a batch, with each edit."""
    try:
        inputs = make_batch(model, chunk.content, Answers()).prompts
    except REFUSED as error:
        first, last = chunk.numbers[0], chunk.numbers[-1]
        error.add_note(f"In task {chunk.dataset!r}, samples {first} to {last}.")
        raise
    names = sorted({name for edit in edits.values() for name in edit.names})
    replay = replay_below(model, names, generating=True)
    answers = {}
    for name, edit in {CLEAN: None, **edits}.items():
        hooks = [] if edit is None else edit.hooks(inputs)
        with warnings.catch_warnings(), model.hooks(hooks), replay.running():
            # Mllama leaves its cross-attention layers out where there is no image.
            warnings.simplefilter("ignore", HookNeverFiredWarning)
            tokens = greedy_tokens(model, inputs, max_new_tokens=max_new_tokens)
        n_prompt = text_for(model, "answers").n_before(inputs)
        texts = model.tokenizer.batch_decode(tokens[:, n_prompt:], skip_special_tokens=True)
        answers[name] = [text.strip() for text in texts]
    return answers
