"""Trains `shapes-llava` from nothing on a CPU: `python -m vlm_lens.shapes_llava.train --out DIR`.

Read from top to bottom: the recipe, what a scene teaches, one step, the loop, and what is saved. As
in LLaVA, the two halves first learn apart and then together:

- first, the vision tower and the projector learn what each image token shows, while the text model
  learns to answer questions about scenes told in words;
- then the whole model learns to answer questions about images, and still about told scenes.

In both phases the positions that are about one object also name it (see `naming.py`): without that,
finding an object by what it is stays at chance for thousands of steps.

Every step draws new scenes; none is kept. A few processes with one thread each compute the
gradients of their own scenes and average them: on a shared machine that is far faster than one
process with many threads. The same seed and number of processes give the same weights, bit for bit.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import torch
from jaxtyping import Float
from torch import Tensor, distributed, multiprocessing, nn
from transformers import LlavaForConditionalGeneration

from vlm_lens.shapes_llava.build import (
    ANSWER,
    IMAGE_TOKENS,
    Size,
    build_model,
    build_processor,
    normalize,
)
from vlm_lens.shapes_llava.draw import draw_images
from vlm_lens.shapes_llava.naming import (
    Namer,
    find_asked,
    find_told,
    label_object,
    label_patches,
)
from vlm_lens.shapes_llava.pack import PackedItem, pack, packed_loss
from vlm_lens.shapes_llava.patches import whiten_patches
from vlm_lens.shapes_llava.questions import Question, ask, describe, tell
from vlm_lens.shapes_llava.scenes import MAX_OBJECTS, Scene, sample_scene
from vlm_lens.shapes_llava.words import vocabulary

log = logging.getLogger(__name__)

VOCAB = vocabulary()
LOG_EVERY = 50
CATEGORIES = (
    *("color", "shape", "digit", "place", "place", "count", "count", "existence", "existence"),
    *["relation"] * 4,
)
"""What is asked about every training scene, besides its description, where the scene allows it."""
TRAINING_DIGIT_SHARE = 0.55
"""More digits than in the held-out scenes: they are the hardest objects to tell apart."""
NAMING_LAYER = 3
"""After how many of its layers the text model is to name what its words are about: the layers that
follow can then use it."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """What one phase teaches, and for how long; the scenes are those of one process and step.

    Attributes:
        steps: number of updates.
        asking: whether questions are asked about the images, or image tokens only name what they
            show, in scenes as full as can be; about told scenes questions are always asked.
        images: scenes drawn.
        tales: scenes told in words.
    """

    steps: int
    asking: bool
    images: int
    tales: int


PHASES = (
    Phase(steps=2500, asking=False, images=16, tales=6),
    Phase(steps=2800, asking=True, images=12, tales=3),
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the trained weights."""

    seed: int = 0
    processes: int = 3
    phases: tuple[Phase, ...] = PHASES
    peak_lr: float = 3e-3
    warmup: int = 100
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    size: Size = field(default_factory=Size)


# What a scene teaches


@dataclass(frozen=True)
class Lesson:
    """One sequence: a prefix with the questions about it.

    Attributes:
        item: the sequence as token ids.
        mentions: positions that are about one object, with its `label_object`.
    """

    item: PackedItem
    mentions: list[tuple[int, tuple[int, int, int]]]


def encode(words: Iterable[str]) -> list[int]:
    """Token ids of words; unknown words are errors."""
    return [VOCAB[word] for word in words]


def image_lesson(rng: Random, scene: Scene) -> Lesson:
    """The image, then its questions."""
    prefix = ["<bos>", *["<image>"] * IMAGE_TOKENS]
    return make_lesson(scene, prefix, [describe(scene), *ask_all(rng, scene)])


def told_lesson(rng: Random, scene: Scene) -> Lesson:
    """The scene told in words, then its questions."""
    prefix = ["<bos>", *tell(rng, scene).split()]
    questions = [describe(scene, modality="text"), *ask_all(rng, scene)]
    return make_lesson(scene, prefix, questions, opening="question : ")


def ask_all(rng: Random, scene: Scene) -> list[Question]:
    """One question per entry of `CATEGORIES`, less those that the scene does not allow."""
    asked = (ask(rng, category, scene) for category in CATEGORIES)
    return [question for question in asked if question is not None]


def make_lesson(
    scene: Scene, prefix: Sequence[str], questions: Iterable[Question], *, opening: str = ""
) -> Lesson:
    """Token ids and mentions of a prefix with its questions and answers."""
    pairs, mentions, start = [], find_told(prefix, scene), len(prefix)
    for question in questions:
        prompt = f"{opening}{question.text} {ANSWER}".split()
        answer = [*question.answer.split(), "<eos>"]
        asked = find_asked(prompt, question, scene)
        mentions += [(start + index, thing) for index, thing in asked]
        pairs.append((encode(prompt), encode(answer)))
        start += len(prompt) + len(answer)
    labels = [(position, label_object(thing)) for position, thing in mentions]
    return Lesson((encode(prefix), pairs), labels)


class Learner:
    """A model with what trains it.

    Attributes:
        model: the model.
        patch_namer: names what each image token shows.
        word_namer: names what words are about.
        weights: everything that is trained.
        optimizers: for all of the weights.
    """

    def __init__(self, model: LlavaForConditionalGeneration, recipe: Recipe) -> None:
        self.model = model
        self.patch_namer = Namer(recipe.size.text_width)
        self.word_namer = Namer(recipe.size.text_width)
        parts = [model, self.patch_namer, self.word_namer]
        self.weights = [weight for part in parts for weight in part.parameters()]
        self.optimizers = make_optimizers(parts, recipe)


def losses(learner: Learner, rng: Random, phase: Phase) -> dict[str, Float[Tensor, ""]]:
    """The losses of new scenes: what image tokens show, what words are about, and the answers."""
    n_objects = None if phase.asking else MAX_OBJECTS
    drawn = [
        sample_scene(rng, n_objects=n_objects, digit_share=TRAINING_DIGIT_SHARE)
        for _ in range(phase.images)
    ]
    told = [sample_scene(rng) for _ in range(phase.tales)]
    pixels = normalize(draw_images(drawn))
    found = {"patches": patch_loss(learner, pixels, drawn)}
    if phase.asking:
        words, answers = lesson_losses(learner, [image_lesson(rng, s) for s in drawn], pixels)
        found |= {"image words": words, "image answers": answers}
    words, answers = lesson_losses(learner, [told_lesson(rng, scene) for scene in told])
    return found | {"told words": words, "told answers": answers}


def patch_loss(
    learner: Learner, pixels: Float[Tensor, "batch 3 64 64"], drawn: Sequence[Scene]
) -> Float[Tensor, ""]:
    """The loss of the image features, as the text model gets them, that name what they show."""
    patches = learner.model.model.vision_tower(pixels).last_hidden_state[:, 1:]
    features = learner.model.model.multi_modal_projector(patches)
    return learner.patch_namer.loss(features, label_patches(drawn))


def lesson_losses(
    learner: Learner,
    lessons: Sequence[Lesson],
    pixels: Float[Tensor, "batch 3 64 64"] | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The losses of what words are about, and of the answers."""
    packed = pack([lesson.item for lesson in lessons])
    output = learner.model(
        input_ids=packed.input_ids,
        pixel_values=pixels,
        attention_mask=packed.attention_mask,
        position_ids=packed.position_ids,
        use_cache=False,
        output_hidden_states=True,
    )
    mentions = [(row, *pair) for row, lesson in enumerate(lessons) for pair in lesson.mentions]
    rows, positions, labels = (torch.tensor(column) for column in zip(*mentions, strict=True))
    states = output.hidden_states[min(NAMING_LAYER, len(output.hidden_states) - 1)]
    words = learner.word_namer.loss(states[rows, positions], labels)
    return words, packed_loss(output.logits, packed)


# How it is learnt


def learning_rate(step: int, *, phase: Phase, recipe: Recipe) -> float:
    """A linear warm-up, and a linear way down from the peak to zero after the last step."""
    up = (step + 1) / recipe.warmup
    down = (phase.steps - step) / phase.steps
    return recipe.peak_lr * min(up, down)


def make_optimizers(parts: Iterable[nn.Module], recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for everything else.

    Muon makes every update of a matrix orthogonal. Its learning rate is scaled to have the update
    size of AdamW, so both follow one schedule.
    """
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    for part in parts:
        for name, weight in part.named_parameters():
            inside = weight.ndim == 2 and ("layers" in name or "projector" in name)
            (matrices if inside else others).append(weight)
    lr, decay = recipe.peak_lr, recipe.weight_decay
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=lr, betas=recipe.betas, weight_decay=0.0, fused=True),
    ]


def average_gradients(weights: Sequence[Tensor]) -> None:
    """Averages the gradients over all processes, in one message."""
    grads = [weight.grad for weight in weights if weight.grad is not None]
    flat = torch.cat([grad.flatten() for grad in grads])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for grad, mean in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(mean.view_as(grad))


def train_step(
    learner: Learner, rng: Random, *, step: int, phase: Phase, recipe: Recipe
) -> dict[str, float]:
    """One update; gives the losses."""
    for optimizer in learner.optimizers:
        optimizer.zero_grad(set_to_none=True)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, phase=phase, recipe=recipe)
    found = losses(learner, rng, phase)
    torch.stack(list(found.values())).sum().backward()
    if recipe.processes > 1:
        average_gradients(learner.weights)
    nn.utils.clip_grad_norm_(learner.weights, recipe.clip)
    for optimizer in learner.optimizers:
        optimizer.step()
    return {name: loss.item() for name, loss in found.items()}


def run_phase(learner: Learner, rng: Random, *, phase: Phase, recipe: Recipe) -> None:
    """All steps of one phase."""
    start = time.perf_counter()
    for step in range(phase.steps):
        found = train_step(learner, rng, step=step, phase=phase, recipe=recipe)
        if (step + 1) % LOG_EVERY == 0:
            seconds = time.perf_counter() - start
            shown = ", ".join(f"{name} {loss:.3f}" for name, loss in found.items())
            log.info("step %d/%d, %.0f s: %s", step + 1, phase.steps, seconds, shown)


def train(recipe: Recipe, *, rank: int = 0) -> LlavaForConditionalGeneration:
    """Trains a model from random weights; each process calls this with its own rank.

    Args:
        recipe: seed, length, batch and model sizes, optimiser settings.
        rank: which of the `recipe.processes` processes this is; each draws its own scenes.

    Returns:
        The trained model, in evaluation mode; the same in all processes.

    Example:
        >>> tiny = Size(vision_width=16, vision_layers=1, text_width=16, text_layers=1, text_mlp=16)
        >>> short = Phase(steps=1, asking=True, images=2, tales=2)
        >>> model = train(Recipe(processes=1, phases=(short,), size=tiny))
        >>> model.training
        False
    """
    torch.manual_seed(recipe.seed)
    rng = Random(f"{recipe.seed} {rank}")
    model = build_model(recipe.size).train()
    whiten_patches(model.model.vision_tower, Random(recipe.seed))
    learner = Learner(model, recipe)
    for phase in recipe.phases:
        run_phase(learner, rng, phase=phase, recipe=recipe)
    return model.eval()


def save(model: LlavaForConditionalGeneration, out: Path) -> None:
    """Writes weights, configuration, tokenizer and processor as Hugging Face loads them."""
    model.save_pretrained(out)
    build_processor().save_pretrained(out)


def join(rank: int, recipe: Recipe, meeting_point: str) -> None:
    """Makes this process one of the `recipe.processes` that train together, on one thread."""
    torch.set_num_threads(1)
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.WARNING, format="%(asctime)s %(message)s"
    )
    distributed.init_process_group(
        "gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=recipe.processes
    )


def work(rank: int, recipe: Recipe, meeting_point: str, out: Path) -> None:
    """What each process does: train with the others; the first one saves."""
    join(rank, recipe, meeting_point)
    model = train(recipe, rank=rank)
    if rank == 0:
        save(model, out)
    distributed.destroy_process_group()


def main() -> None:
    """Command line: trains with the default recipe, or a short one, and saves the model."""
    parser = argparse.ArgumentParser(description="Trains `shapes-llava` from nothing.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the trained model")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--processes", type=int, default=Recipe.processes, help="one thread each")
    parser.add_argument("--steps", type=int, default=None, help="at most so many in each phase")
    args = parser.parse_args()
    phases = tuple(
        replace(phase, steps=min(phase.steps, args.steps or phase.steps)) for phase in PHASES
    )
    recipe = Recipe(seed=args.seed, processes=args.processes, phases=phases)
    with tempfile.TemporaryDirectory() as folder:
        arguments = (recipe, str(Path(folder) / "meeting_point"), args.out)
        multiprocessing.spawn(work, arguments, nprocs=recipe.processes)


if __name__ == "__main__":
    main()
