"""What the report tells about one answer: its neurons, and what happens without them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from vlm_lens.analyses import DirectEffect, FirstOrderEffect, direct_effect, first_order_effect
from vlm_lens.analyses.logit_effect import MLP_NEURONS
from vlm_lens.cache import ActivationCache
from vlm_lens.inputs import Inputs, TokenMap
from vlm_lens.model import HookedVLM
from vlm_lens.neurons import Neuron, NeuronSet
from vlm_lens.plots import style

IMAGE_SIDE_SHOWN = 6
LONGEST_ANSWER = 20


@dataclass(frozen=True)
class Outcome:
    """How the model answers, as it is or without some neurons.

    Attributes:
        name: What was done to the model.
        answer: The text it generates.
        logit: The logit of the clean answer's first token.
        probability: Its probability.
    """

    name: str
    answer: str
    logit: float
    probability: float


@dataclass(frozen=True, eq=False)
class NeuronView:
    """One neuron's activations on the prompt and the clean answer.

    Attributes:
        neuron: Which one.
        over_image: Its activation at each patch of the image.
        over_tokens: Its activation at each position; None outside of the language model.
        limit: The magnitude to give the full colour: the largest one, special tokens left out
            (they often dwarf all others).
        direct_effect: Its direct effect on the answer's logit; None outside of the language model.
        first_order_effect: Its estimated total effect on the answer's logit.
        activation: Its activation at the position that predicts the answer; None likewise.
    """

    neuron: Neuron
    over_image: Float[np.ndarray, "rows cols"]
    over_tokens: Float[np.ndarray, " pos"] | None
    limit: float
    direct_effect: float | None
    first_order_effect: float
    activation: float | None


@dataclass(frozen=True, eq=False)
class AnswerStudy:
    """Everything that the report shows.

    Attributes:
        inputs: The prompt with its image.
        token_map: The positions of prompt and clean answer.
        target: The clean answer's first token, as text.
        outcomes: The model as it is, without its best neurons, without random ones.
        language_neurons: The neurons with the largest direct effect, best first.
        image_neurons: Those before the language model with the largest estimated total effect.
        n_language_neurons: How many neurons the language model has in all.
        n_image_neurons: How many the vision encoder and the projector have.
        seed: What the random control was drawn with.
    """

    inputs: Inputs
    token_map: TokenMap
    target: str
    outcomes: list[Outcome]
    language_neurons: list[NeuronView]
    image_neurons: list[NeuronView]
    n_language_neurons: int
    n_image_neurons: int
    seed: int


def study_answer(
    model: HookedVLM,
    inputs: Inputs,
    *,
    top: int = 20,
    seed: int = 0,
    on_step: Callable[[str], None] = lambda _: None,
) -> AnswerStudy:
    """Answers a question about an image, and finds and removes the neurons that it hangs on.

    Args:
        model: The model.
        inputs: One prompt with one image.
        top: How many of the language model's neurons to ablate and show.
        seed: For the random control.
        on_step: Is told what happens next.

    Raises:
        ValueError: The inputs are not one prompt with one image, or `top` is more than half of a
            layer's neurons (which would leave too few for the control).
    """
    check_study(model, inputs, top=top)
    on_step("answering, with every neuron cached")
    tokens, cache = model.generate_with_cache(
        inputs, names_filter=MLP_NEURONS, max_new_tokens=LONGEST_ANSWER, do_sample=False
    )
    first = int(tokens[0, inputs.shape[1]])
    on_step("ranking neurons by their direct effect on the answer")
    direct = direct_effect(model, inputs, token=first)
    on_step("estimating the total effect of every neuron, vision encoder and projector included")
    total = first_order_effect(model, inputs, token=first)
    best, image_side = direct.top(top), _image_side(total)
    on_step(f"answering again without the best {top} neurons, and without {top} random ones")
    return AnswerStudy(
        inputs=inputs,
        token_map=_token_map(cache),
        target=model.to_single_str_token(first),
        outcomes=_outcomes(model, inputs, first, best, seed=seed),
        language_neurons=[_language_view(neuron, cache, direct, total) for neuron in best],
        image_neurons=[
            _image_view(neuron, cache, total)
            for neuron in NeuronSet.from_scores(image_side, k=IMAGE_SIDE_SHOWN)
        ],
        n_language_neurons=sum(map(len, direct.scores.values())),
        n_image_neurons=sum(map(len, image_side.values())),
        seed=seed,
    )


def check_study(model: HookedVLM, inputs: Inputs, *, top: int) -> None:
    """Checks what `study_answer` needs, before it starts.

    Raises:
        ValueError: See `study_answer`; or the image's tokens lie on no grid.
    """
    if [len(images) for images in inputs.images] != [1]:
        counts = [len(images) for images in inputs.images]
        raise ValueError(f"expected one prompt with one image, got prompts with {counts} images")
    if not 1 <= top <= model.cfg.d_mlp // 2:
        raise ValueError(
            f"expected to ablate 1 to {model.cfg.d_mlp // 2} neurons (half of a layer, so that as "
            f"many are left for the random control), got {top}"
        )
    inputs.token_map[0].grid()  # the heat maps need one


def _outcomes(
    model: HookedVLM, inputs: Inputs, token: int, best: NeuronSet, *, seed: int
) -> list[Outcome]:
    variants = {
        "as it is": NeuronSet(),
        f"without its best {len(best)} neurons": best,
        f"without {len(best)} random neurons of the same layers": best.sample_control(seed=seed),
    }
    return [
        _outcome(model, inputs, token, name=name, without=without)
        for name, without in variants.items()
    ]


@torch.no_grad()
def _outcome(
    model: HookedVLM, inputs: Inputs, token: int, *, name: str, without: NeuronSet
) -> Outcome:
    with model.hooks(fwd_hooks=without.ablate("zero")):
        logits = model(inputs)[0, -1].float()
        tokens = model.generate(
            inputs, max_new_tokens=LONGEST_ANSWER, do_sample=False, return_type="tokens"
        )
    answer = model.tokenizer.decode(tokens[0, inputs.shape[1] :], skip_special_tokens=True)
    probability = logits.softmax(-1)[token]
    return Outcome(name, answer.strip(), float(logits[token]), float(probability))


def _image_side(total: FirstOrderEffect) -> dict[str, torch.Tensor]:
    return {
        name: scores
        for name, scores in total.scores.items()
        if Neuron(name, 0).component != "language_model"
    }


def _language_view(
    neuron: Neuron, cache: ActivationCache, direct: DirectEffect, total: FirstOrderEffect
) -> NeuronView:
    """A neuron of the language model: it has a value at every position, image patches included."""
    token_map = _token_map(cache)
    values = style.to_numpy(cache[neuron.name][0, :, neuron.index])
    ordinary = np.array([kind != "special" for kind in token_map.modality])
    return NeuronView(
        neuron=neuron,
        over_image=token_map.grid_values(values),
        over_tokens=values,
        limit=style.colour_limit(values[ordinary]),
        direct_effect=_score(direct.scores, neuron),
        first_order_effect=_score(total.scores, neuron),
        activation=_score(direct.activations, neuron),
    )


def _image_view(neuron: Neuron, cache: ActivationCache, total: FirstOrderEffect) -> NeuronView:
    """A neuron of the vision encoder or the projector: it has a value at every patch."""
    grid = _token_map(cache).grid()
    values = style.to_numpy(cache[neuron.name][0, :, neuron.index])
    patches = values[-grid.rows * grid.cols :]  # a class token, where there is one, comes first
    return NeuronView(
        neuron=neuron,
        over_image=patches.reshape(grid.rows, grid.cols),
        over_tokens=None,
        limit=style.colour_limit(patches),
        direct_effect=None,
        first_order_effect=_score(total.scores, neuron),
        activation=None,
    )


def _token_map(cache: ActivationCache) -> TokenMap:
    assert cache.token_maps is not None  # it is from prepared inputs
    return cache.token_maps[0]


def _score(scores: dict[str, torch.Tensor], neuron: Neuron) -> float:
    return float(scores[neuron.name][neuron.index])
