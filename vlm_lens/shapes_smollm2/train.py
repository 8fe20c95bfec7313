"""Trains the connector of `shapes-smollm2`: `python -m vlm_lens.shapes_smollm2.train --out DIR`.

The vision tower and the language model are trained already, and stay as they are. What is learnt is
how to say to the one what the other has seen: the connector first learns to give, for each image
token, the sum of the word embeddings of what it shows; then it learns, together with low-rank
adapters on the language model's attention, to have questions about images answered. Questions about
scenes that are told in words are asked too.

A run that was stopped goes on after the last step that was kept when the same command is given
again; the scenes of a step depend on the seed and the step alone.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save
from torch import Tensor, nn

from vlm_lens.shapes_llava.build import normalize
from vlm_lens.shapes_llava.draw import draw_images, locate_objects
from vlm_lens.shapes_llava.naming import Namer
from vlm_lens.shapes_llava.pack import Packed, answer_loss, pack
from vlm_lens.shapes_llava.questions import tell
from vlm_lens.shapes_llava.scenes import Scene, sample_scene
from vlm_lens.shapes_smollm2.adapters import add_adapters
from vlm_lens.shapes_smollm2.build import (
    CONNECTOR,
    IMAGE_TOKENS,
    MERGED,
    build_model,
    build_tokenizer,
)
from vlm_lens.shapes_smollm2.comparing import Comparer
from vlm_lens.shapes_smollm2.lessons import (
    CATEGORIES,
    PairLesson,
    ask_all,
    image_lesson,
    told_lesson,
)
from vlm_lens.whole_file import replace_file

log = logging.getLogger(__name__)

STATE = "state.safetensors"
"""What a run needs to go on, beside the connector that it has trained so far."""

DIGIT_SHARE = 0.5
"""More digits than in the held-out scenes: they are the hardest objects to tell apart."""
SHOWN_FRACTION = 0.05
"""An image token shows an object that covers more of it than this."""
NAMING_LAYER, COMPARING_LAYER = 12, 18
"""After how many of its layers the language model is to name what its words are about, and after
how many to compare the two that a question is about."""
TOLD_WEIGHT = 0.5
"""Told scenes are easier: they count less."""
LOG_EVERY, SAVE_EVERY = 20, 100


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides what is learnt.

    Attributes:
        steps: updates in all.
        words_steps: updates that first teach the connector the words of what each token shows.
        falling: the share of the steps, at the end, in which the learning rate falls to zero.
        images: scenes drawn for a step.
        tales: scenes told in words for a step.
        relations: questions about relations, for each scene.
        others: other questions, for each scene, beside one about existence.
        from_layer: what comes before this layer of the language model stays as it is.
        dtype: what the language model's layers compute with. A CPU that has instructions for
            bfloat16 is three times as fast with it, and any other four times as slow.
    """

    seed: int = 0
    steps: int = 1300
    words_steps: int = 600
    falling: float = 0.4
    warmup: int = 50
    images: int = 7
    tales: int = 2
    relations: int = 3
    others: int = len(CATEGORIES)
    from_layer: int = 0
    rank: int = 16
    lr: float = 1e-3
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    dtype: torch.dtype = torch.bfloat16


class Learner:
    """The model with what is trained of it.

    Attributes:
        model: the model, frozen but for its connector and adapters.
        autocast: what its layers compute within.
        namer: names what words are about; thrown away afterwards.
        comparer: compares the two objects of a question; thrown away afterwards.
        weights: all that is trained, by name.
        optimizer: of all that is trained.
    """

    def __init__(self, recipe: Recipe) -> None:
        torch.manual_seed(recipe.seed)
        self.model: Any = build_model(None).requires_grad_(requires_grad=False)
        self.model.set_attn_implementation("eager")  # the fastest on a CPU, with masks like these
        self.tokenizer: Any = build_tokenizer()
        text = self.model.model.language_model
        text.layers.to(recipe.dtype)
        self.autocast = partial(
            torch.autocast, "cpu", recipe.dtype, enabled=recipe.dtype != torch.float32
        )
        adapters = add_adapters(text.layers, rank=recipe.rank)
        connector = self.model.model.multi_modal_projector.requires_grad_()
        self.namer = Namer(text.config.hidden_size)
        self.comparer = Comparer(text.config.hidden_size)
        heads = {"namer": self.namer, "comparer": self.comparer}
        trained = nn.ModuleDict({"connector": connector, **heads})
        weights = dict(trained.named_parameters())
        for name, adapter in adapters.items():
            weights |= {f"adapters.{name}.a": adapter.a, f"adapters.{name}.b": adapter.b}
        self.weights = weights
        for name, weight in weights.items():
            weight.requires_grad_(_depth(name) >= recipe.from_layer)
        self.optimizer = torch.optim.AdamW(
            weights.values(), lr=recipe.lr, weight_decay=recipe.weight_decay, betas=recipe.betas
        )

    def image_tokens(
        self, pixels: Float[Tensor, "batch 3 64 64"]
    ) -> Float[Tensor, "batch tokens d_model"]:
        """What the language model gets of images."""
        return self.model.model.get_image_features(pixels).pooler_output

    def state(self) -> dict[str, Tensor]:
        """What a later process needs to go on: the trained weights and the optimiser's state."""
        kept = {name: weight.detach() for name, weight in self.weights.items()}
        for name, weight in self.weights.items():
            for key, value in self.optimizer.state[weight].items():
                kept[f"optimizer.{key}.{name}"] = value
        return kept

    def restore(self, kept: dict[str, Tensor]) -> None:
        """Goes on from what `state` gave."""
        for name, weight in self.weights.items():
            weight.data.copy_(kept[name])
            state = {
                key: kept[full]
                for key in ("step", "exp_avg", "exp_avg_sq")
                if (full := f"optimizer.{key}.{name}") in kept
            }
            if state:
                self.optimizer.state[weight] = state

    def begin_with(self, shipped: dict[str, Tensor]) -> None:
        """Begins with what `release` gave, of an earlier run."""
        for name, weight in shipped.items():
            self.weights[name].data.copy_(weight)

    def release(self) -> dict[str, Tensor]:
        """What ships: connector and adapters, in half precision."""
        parts = ("connector.", "adapters.")
        shipped = {name: w for name, w in self.weights.items() if name.startswith(parts)}
        return {name: weight.detach().half() for name, weight in shipped.items()}


# What a scene teaches


def _depth(name: str) -> int:
    """Before which layer of the language model a weight counts: the heads come after all."""
    part, index, *_ = name.split(".")
    if part == "adapters":
        return int(index)
    return 0 if part == "connector" else sys.maxsize


def word_targets(learner: Learner, scenes: Sequence[Scene]) -> Float[Tensor, "batch tokens d"]:
    """For each image token, the summed word embeddings of each object that it shows."""
    embed = learner.model.model.language_model.embed_tokens
    side = int(IMAGE_TOKENS**0.5)
    targets = torch.zeros(len(scenes), IMAGE_TOKENS, embed.weight.shape[1])
    for row, scene in enumerate(scenes):
        for thing, drawing in zip(scene.objects, locate_objects(scene), strict=True):
            shown = torch.from_numpy(drawing.patch_fraction).float()
            shown = shown.reshape(side, MERGED, side, MERGED).mean((1, 3)).flatten()
            color, name, place = thing.color, thing.name, thing.phrase.rpartition(" at the ")[2]
            ids = learner.tokenizer(f" {color} {name} {place}").input_ids
            targets[row] += (shown > SHOWN_FRACTION)[:, None] * embed.weight[torch.tensor(ids)].sum(
                0
            )
    return targets


def words_loss(learner: Learner, rng: Random, *, n: int = 32) -> Float[Tensor, ""]:
    """How far the image tokens are from the words of what they show, as a share of the words."""
    scenes = [sample_scene(rng, digit_share=DIGIT_SHARE) for _ in range(n)]
    targets = word_targets(learner, scenes)
    given = learner.image_tokens(normalize(draw_images(scenes)))
    return (given - targets).square().mean() / targets.square().mean()


def lesson_losses(
    learner: Learner, lessons: Sequence[PairLesson], pixels: Tensor | None
) -> dict[str, Float[Tensor, ""]]:
    """The losses of what words are about, of what is compared, and of the answers."""
    packed = pack([lesson.item for lesson in lessons])
    text = learner.model.model.language_model
    embedded = text.embed_tokens(packed.input_ids)
    if pixels is not None:
        image = packed.input_ids == learner.model.config.image_token_id
        tokens = learner.image_tokens(pixels).flatten(0, 1)
        embedded = embedded.masked_scatter(image[..., None], tokens)
    with learner.autocast(), _kept(text) as kept:
        states = text(
            inputs_embeds=embedded,
            attention_mask=added_mask(packed),
            position_ids=packed.position_ids,
            use_cache=False,
        ).last_hidden_state
    heads = {
        "words": (learner.namer, NAMING_LAYER, [lesson.mentions for lesson in lessons]),
        "relations": (learner.comparer, COMPARING_LAYER, [one.compared for one in lessons]),
    }
    named = {
        name: head.loss(*_at(kept[layer], marked))
        for name, (head, layer, marked) in heads.items()
        if any(marked)
    }
    return named | {
        "answers": answer_loss(
            states[packed.targets >= 0].float() @ text.embed_tokens.weight.T, packed
        ),
    }


def added_mask(packed: Packed) -> Float[Tensor, "batch 1 pos pos"]:
    """What is added to the scores: eager attention takes no mask of True and False."""
    hidden = torch.finfo(torch.float32).min
    return torch.zeros(packed.attention_mask.shape).masked_fill(~packed.attention_mask, hidden)


@contextmanager
def _kept(text: Any) -> Iterator[dict[int, Tensor]]:
    """What leaves the layers before these two, while the block lasts."""
    kept: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for layer in (NAMING_LAYER, COMPARING_LAYER):
            keep = partial(_keep, kept, layer)
            handle = text.layers[layer].register_forward_pre_hook(keep)
            stack.callback(handle.remove)
        yield kept


def _keep(kept: dict[int, Tensor], layer: int, _: nn.Module, given: tuple[Tensor, ...]) -> None:
    kept[layer] = given[0]


def _at(
    states: Float[Tensor, "batch pos d_model"],
    marked: Sequence[Sequence[tuple[int, tuple[int, ...]]]],
) -> tuple[Float[Tensor, "marks d_model"], Int[Tensor, "marks labels"]]:
    """The states at the marked positions of each row, and their labels."""
    marks = [(row, *mark) for row, of_row in enumerate(marked) for mark in of_row]
    rows, positions, labels = ([mark[column] for mark in marks] for column in range(3))
    return states[rows, positions].float(), torch.tensor(labels)


# How it is learnt


def learning_rate(step: int, recipe: Recipe) -> float:
    """A linear warm-up, then constant, then a linear way down to zero."""
    left = (recipe.steps - step) / (recipe.steps * recipe.falling)
    return recipe.lr * min(1.0, (step + 1) / recipe.warmup, left)


def update(learner: Learner, loss: Float[Tensor, ""], lr: float, recipe: Recipe) -> None:
    """One step of the optimiser."""
    for group in learner.optimizer.param_groups:
        group["lr"] = lr
    learner.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(learner.weights.values(), recipe.clip)
    learner.optimizer.step()


def losses(learner: Learner, rng: Random, recipe: Recipe) -> dict[str, Float[Tensor, ""]]:
    """The losses of new scenes."""
    drawn = [sample_scene(rng, digit_share=DIGIT_SHARE) for _ in range(recipe.images)]
    told = [sample_scene(rng) for _ in range(recipe.tales)]
    asked = {
        scene: ask_all(rng, scene, relations=recipe.relations, others=recipe.others)
        for scene in (*drawn, *told)
    }
    lessons = [image_lesson(learner.tokenizer, scene, asked[scene]) for scene in drawn]
    seen = lesson_losses(learner, lessons, normalize(draw_images(drawn)))
    found = {f"image {name}": loss for name, loss in seen.items()}
    if told:
        tales = [(scene, tell(rng, scene)) for scene in told]
        lessons = [
            told_lesson(learner.tokenizer, scene, tale, asked[scene]) for scene, tale in tales
        ]
        heard = lesson_losses(learner, lessons, None)
        found |= {f"told {name}": loss * TOLD_WEIGHT for name, loss in heard.items()}
    return found


def train(
    learner: Learner, recipe: Recipe, out: Path, *, start: int = 0, stop: int | None = None
) -> None:
    """The steps from `start` on, to `stop` or all; what is learnt is kept in `out` as it goes."""
    began, end = time.perf_counter(), recipe.steps if stop is None else stop
    for step in range(start, end):
        rng = Random(f"{recipe.seed} {step}")
        found = losses(learner, rng, recipe)
        update(
            learner, torch.stack(list(found.values())).sum(), learning_rate(step, recipe), recipe
        )
        if (step + 1) % LOG_EVERY == 0:
            shown = ", ".join(f"{name} {loss:.3f}" for name, loss in found.items())
            pace = (time.perf_counter() - began) / (step + 1 - start)
            log.info("step %d/%d, %.2f s each: %s", step + 1, recipe.steps, pace, shown)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == end:
            keep(learner, out, step + 1, seed=recipe.seed)


def keep(learner: Learner, out: Path, step: int, *, seed: int) -> None:
    """Writes what ships, and what a later process needs to go on."""
    out.mkdir(parents=True, exist_ok=True)
    replace_file(out / CONNECTOR.name, save(learner.release()))
    counts = {"step": torch.tensor(step), "seed": torch.tensor(seed)}
    replace_file(out / STATE, save(learner.state() | counts))


def main() -> None:
    """Command line: trains with the default recipe, or goes on with a run that was stopped."""
    parser = argparse.ArgumentParser(description="Trains the connector of `shapes-smollm2`.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the connector")
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--lr", type=float, default=Recipe.lr)
    parser.add_argument("--images", type=int, default=Recipe.images)
    parser.add_argument("--tales", type=int, default=Recipe.tales)
    parser.add_argument("--relations", type=int, default=Recipe.relations)
    parser.add_argument("--others", type=int, default=Recipe.others)
    parser.add_argument("--from-layer", type=int, default=Recipe.from_layer)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    first = "connector to begin with, in place of the lesson about words (default: none)"
    parser.add_argument("--begin", type=Path, default=None, help=first)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    given = ("steps", "seed", "lr", "images", "tales", "relations", "others", "from_layer")
    recipe = Recipe(
        **{name: getattr(options, name) for name in given}, dtype=getattr(torch, options.dtype)
    )
    learner, start = Learner(recipe), 0
    if (options.out / STATE).is_file():
        kept = load_file(options.out / STATE)
        if int(kept["seed"]) != recipe.seed:
            parser.error(f"{options.out} has a run with --seed {int(kept['seed'])}: go on with it")
        learner.restore(kept)
        start = int(kept["step"])
        log.info("going on after step %d", start)
    elif options.begin is not None:
        learner.begin_with(load_file(options.begin))
    else:
        teach_words(learner, recipe)
    train(learner, recipe, options.out, start=start)


def teach_words(learner: Learner, recipe: Recipe) -> None:
    """The first lesson, for the connector alone: the words of what each image token shows."""
    for step in range(recipe.words_steps):
        loss = words_loss(learner, Random(f"words {recipe.seed} {step}"))
        update(learner, loss, 2 * recipe.lr * (1 - step / recipe.words_steps), recipe)
        if (step + 1) % (5 * LOG_EVERY) == 0:
            log.info("words, step %d/%d: %.3f", step + 1, recipe.words_steps, loss.item())
    learner.optimizer.state.clear()


if __name__ == "__main__":
    main()
