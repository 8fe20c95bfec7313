"""Trains `shapes-llava` from nothing on a CPU: `python -m vlm_lens.shapes_llava.train --out DIR`.

Read from top to bottom: the recipe, what is learnt in each phase, one step, the loop, and what is
saved. As in LLaVA, the two halves first learn apart and then together:

- first, the vision tower learns to name the colour and the object that each patch shows, with a
  linear head that is thrown away afterwards, while the text model learns to answer questions about
  scenes told in words;
- then the whole model learns to answer questions about images, and still about told scenes;
- last, the tower also names the place of what each patch shows, besides all the questions.

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
from vlm_lens.shapes_llava.pack import Packed, PackedItem, pack, packed_loss
from vlm_lens.shapes_llava.patches import LABELS, PatchNamer, whiten_patches
from vlm_lens.shapes_llava.questions import Question, ask, describe, tell
from vlm_lens.shapes_llava.scenes import MAX_OBJECTS, Scene, sample_scene
from vlm_lens.shapes_llava.words import vocabulary

log = logging.getLogger(__name__)

VOCAB = vocabulary()
LOG_EVERY = 50
CATEGORIES = (
    *("color", "shape", "digit", "place"),
    *("count", "count", "existence", "existence", "relation", "relation"),
)
"""What is asked about every training scene, besides its description, where the scene allows it."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """What one phase teaches, and for how long; the scenes are those of one process and step.

    Attributes:
        steps: number of updates.
        naming: what the tower is to name of each patch, some of `LABELS`.
        asking: whether questions are asked about the images; about told scenes they always are.
        image_scenes: scenes drawn.
        text_scenes: scenes told in words.
        decay: over how many of the last steps the learning rate falls to zero.
        grow: scenes start with one object and may hold one more every `grow` steps.
    """

    steps: int
    naming: tuple[str, ...] = ()
    asking: bool = True
    image_scenes: int
    text_scenes: int
    decay: int = 1
    grow: int = 150


PHASES = (
    Phase(
        steps=1800,
        naming=("color", "name"),
        asking=False,
        image_scenes=16,
        text_scenes=6,
        decay=200,
    ),
    Phase(steps=1500, image_scenes=10, text_scenes=4),
    Phase(steps=2500, naming=tuple(LABELS), image_scenes=8, text_scenes=8, decay=500, grow=1),
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


# Scenes as tensors


def encode(text: str) -> list[int]:
    """Token ids of a text whose words are separated by single spaces; unknown words are errors."""
    return [VOCAB[word] for word in text.split()]


def image_item(rng: Random, scene: Scene) -> PackedItem:
    """The image as prefix, then its questions."""
    prefix = [VOCAB["<bos>"], *[VOCAB["<image>"]] * IMAGE_TOKENS]
    questions = [describe(scene), *ask_all(rng, scene)]
    return prefix, [encode_pair(question.text, question) for question in questions]


def text_item(rng: Random, scene: Scene) -> PackedItem:
    """The told scene as prefix, then its questions."""
    prefix = [VOCAB["<bos>"], *encode(tell(rng, scene))]
    questions = [describe(scene, modality="text"), *ask_all(rng, scene)]
    return prefix, [encode_pair(f"question : {q.text}", q) for q in questions]


def ask_all(rng: Random, scene: Scene) -> list[Question]:
    """One question per entry of `CATEGORIES`, less those that the scene does not allow."""
    asked = (ask(rng, category, scene) for category in CATEGORIES)
    return [question for question in asked if question is not None]


def encode_pair(text: str, question: Question) -> tuple[list[int], list[int]]:
    """The prompt and the answer that follows it, which ends the sequence."""
    return encode(f"{text} {ANSWER}"), encode(f"{question.answer} <eos>")


# What is learnt


def question_loss(
    model: LlavaForConditionalGeneration,
    packed: Packed,
    pixels: Float[Tensor, "batch 3 64 64"] | None = None,
) -> Float[Tensor, ""]:
    """Loss of all questions of a packed batch, about images or about told scenes."""
    output = model(
        input_ids=packed.input_ids,
        pixel_values=pixels,
        attention_mask=packed.attention_mask,
        position_ids=packed.position_ids,
        use_cache=False,
    )
    return packed_loss(output.logits, packed)


def losses(
    model: LlavaForConditionalGeneration,
    namer: PatchNamer | None,
    rng: Random,
    *,
    step: int,
    phase: Phase,
) -> Iterable[Float[Tensor, ""]]:
    """The losses of a phase: naming patches, questions about images, about told scenes."""
    most = min(MAX_OBJECTS, 1 + step // phase.grow)
    drawn = [sample_scene(rng, n_objects=rng.randint(1, most)) for _ in range(phase.image_scenes)]
    told = [sample_scene(rng, n_objects=rng.randint(1, most)) for _ in range(phase.text_scenes)]
    if namer is not None:
        yield namer.loss(model.model.vision_tower, drawn)
    if phase.asking:
        packed = pack([image_item(rng, scene) for scene in drawn])
        yield question_loss(model, packed, normalize(draw_images(drawn)))
    yield question_loss(model, pack([text_item(rng, scene) for scene in told]))


# How it is learnt


def learning_rate(step: int, *, phase: Phase, recipe: Recipe) -> float:
    """A linear warm-up to the peak, the peak, and a linear way down to zero after the last step."""
    up = (step + 1) / recipe.warmup
    down = (phase.steps - step) / phase.decay
    return recipe.peak_lr * min(up, 1.0, down)


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


class Learner:
    """A model with what trains it; the optimisers are new, so each phase has its own.

    Attributes:
        model: the model.
        namer: the head that names patches, in a phase that has any to name, else None.
        weights: everything that is trained.
        optimizers: for all of the weights.
    """

    def __init__(
        self, model: LlavaForConditionalGeneration, namer: PatchNamer | None, recipe: Recipe
    ) -> None:
        parts = [model] if namer is None else [model, namer]
        self.model, self.namer = model, namer
        self.weights = [weight for part in parts for weight in part.parameters()]
        self.optimizers = make_optimizers(parts, recipe)


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
) -> list[float]:
    """One update; gives the losses."""
    for optimizer in learner.optimizers:
        optimizer.zero_grad(set_to_none=True)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, phase=phase, recipe=recipe)
    values = []
    for loss in losses(learner.model, learner.namer, rng, step=step, phase=phase):
        loss.backward()
        values.append(loss.item())
    if recipe.processes > 1:
        average_gradients(learner.weights)
    nn.utils.clip_grad_norm_(learner.weights, recipe.clip)
    for optimizer in learner.optimizers:
        optimizer.step()
    return values


def run_phase(learner: Learner, rng: Random, *, phase: Phase, recipe: Recipe) -> None:
    """All steps of one phase."""
    start = time.perf_counter()
    for step in range(phase.steps):
        values = train_step(learner, rng, step=step, phase=phase, recipe=recipe)
        if (step + 1) % LOG_EVERY == 0:
            seconds = time.perf_counter() - start
            shown = " ".join(f"{value:.3f}" for value in values)
            log.info("step %d/%d, losses %s, %.0f s", step + 1, phase.steps, shown, seconds)


def train(recipe: Recipe, *, rank: int = 0) -> LlavaForConditionalGeneration:
    """Trains a model from random weights; each process calls this with its own rank.

    Args:
        recipe: seed, length, batch and model sizes, optimiser settings.
        rank: which of the `recipe.processes` processes this is; each draws its own scenes.

    Returns:
        The trained model, in evaluation mode; the same in all processes.

    Example:
        >>> tiny = Size(vision_width=16, vision_layers=1, text_width=16, text_layers=1, text_mlp=16)
        >>> short = Phase(steps=1, image_scenes=2, text_scenes=2)
        >>> model = train(Recipe(processes=1, phases=(short,), size=tiny))
        >>> model.training
        False
    """
    torch.manual_seed(recipe.seed)
    rng = Random(f"{recipe.seed} {rank}")
    model = build_model(recipe.size).train()
    whiten_patches(model.model.vision_tower, Random(recipe.seed))
    for phase in recipe.phases:
        namer = PatchNamer(recipe.size.vision_width, phase.naming) if phase.naming else None
        run_phase(Learner(model, namer, recipe), rng, phase=phase, recipe=recipe)
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
