"""One check an exercise: None for a right answer, or else what is wrong with it.

A check works the answer out by itself, and compares. Where a mistake is a common one, it is
recognised by the answer that it leads to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vlm_lens.neurons import Neuron, NeuronSet
from vlm_lens.teaching.setting import Setting
from vlm_lens.teaching.verdict import as_number

PIXEL = (52, 30)
"""Exercise 1: x and y of a point of the picture."""
LAYER, HEAD = 2, 3
"""Exercise 2: whose attention."""
NEURON_LAYER, N_NEURONS = 3, 10
"""Exercise 4: where to look, and for how many."""
_CLOSE = 1e-3


class Unanswered(Exception):
    """A function came as it was handed out: it returns nothing."""


def called(function: Any, *args: Any, **kwargs: Any) -> tuple[Any, str | None]:
    """What an answer that is a function returns, or a complaint."""
    if not callable(function):
        return None, f"The answer is a function, this is a {type(function).__name__}."
    try:
        result = function(*args, **kwargs)
    except Exception as error:  # a wrong answer is no reason to stop a notebook
        return None, f"It raised {type(error).__name__}: {error}"
    if result is None or result is ...:
        raise Unanswered("The function returns nothing yet.")
    return result, None


# 1 ------------------------------------------------------------------------------------------------


def position(setting: Setting, answer: Any) -> str | None:
    """The position that shows a pixel."""
    if isinstance(answer, bool) or not isinstance(answer, int):
        return f"A position is an integer, this is a {type(answer).__name__}."
    tokens = setting.token_map
    x, y = PIXEL
    shown, right = tokens.positions("image"), tokens.position(x, y)
    if answer == right:
        return None
    if right is not None and answer == shown.index(right):
        return "You counted patches. What stands in front of the picture has a position too."
    if answer == tokens.position(y, x):
        return "That is where x and y are exchanged: x goes to the right, y goes down."
    if answer not in shown:
        return "This position shows no patch at all; `token_map.positions('image')` lists those."
    x0, y0, x1, y1 = tokens.box(answer)
    return f"That patch shows x from {x0:.0f} to {x1:.0f} and y from {y0:.0f} to {y1:.0f}."


# 2 ------------------------------------------------------------------------------------------------


def attention_share(setting: Setting, answer: Any) -> str | None:
    """The share of the last position's attention that goes to the picture."""
    number = as_number(answer)
    if number is None:
        return f"Expected one number, got a {type(answer).__name__}."
    pattern = setting.cache["pattern", LAYER][0]
    in_picture = setting.token_map.positions("image")
    right = float(pattern[HEAD, -1, in_picture].sum())
    mistakes = {
        100 * right: "A share is between 0 and 1; this is in percent.",
        float(pattern[HEAD, -1, in_picture].mean()): "That is the mean of a patch, not the sum.",
        float(pattern[:, -1, in_picture].sum(-1).mean()): "That is the mean of all heads.",
        float(pattern[HEAD][in_picture, -1].sum()): (
            "That is what the picture pays to the last position: a pattern is [query, key]."
        ),
        float(pattern[HEAD][:, in_picture].sum(-1).mean()): (
            "That is the mean of all queries; only the last position was asked for."
        ),
    }
    if abs(number - right) < _CLOSE:
        return None
    for wrong, complaint in mistakes.items():
        if abs(number - wrong) < _CLOSE:
            return complaint
    return "A share is between 0 and 1." if not 0 <= number <= 1 else "It is another number."


# 3 ------------------------------------------------------------------------------------------------


def averaging_hook(setting: Setting, answer: Any) -> str | None:  # noqa: ARG001
    """A hook function that gives every patch the mean of its picture's patches."""
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(2, 5, 3, generator=generator)
    result, complaint = called(answer, given.clone(), None)
    if complaint is not None:
        return complaint
    if not isinstance(result, Tensor):
        return f"It returned a {type(result).__name__}; a hook function returns a tensor."
    if result.shape != given.shape:
        return f"It made {list(given.shape)} into {list(result.shape)}: the shape must stay."
    right = given.mean(1, keepdim=True).expand_as(given)
    mistakes = [
        (given, "It returned what it got."),
        (given.mean(0, keepdim=True).expand_as(given), "It mixes the pictures of a batch."),
        (given.mean(2, keepdim=True).expand_as(given), "It mixes the channels of a patch."),
        (given.mean().expand_as(given), "It is the mean over everything, channels included."),
    ]
    for wrong, what in mistakes:
        if torch.allclose(result, wrong, atol=1e-5):
            return what
    return None if torch.allclose(result, right, atol=1e-5) else "The values are others."


# 4 ------------------------------------------------------------------------------------------------


def picture_neurons(setting: Setting, answer: Any) -> str | None:
    """The neurons that are more active on the picture than on the words."""
    if not isinstance(answer, NeuronSet):
        return f"Expected a NeuronSet, got a {type(answer).__name__}."
    name = f"blocks.{NEURON_LAYER}.mlp.hook_post"
    if answer.names != (name,):
        return f"Expected neurons of {name!r} only, got {', '.join(answer.names) or 'none'}."
    if len(answer) != N_NEURONS:
        return f"Expected {N_NEURONS} neurons, got {len(answer)}."
    scores = setting.cache.image(name).mean(0) - setting.cache.text(name).mean(0)
    order = scores.argsort(descending=True).tolist()
    right = NeuronSet(Neuron(name, index) for index in order[:N_NEURONS])
    if list(answer) == list(right):
        return None
    if answer == right:
        return "These are the neurons, in another order: the best one comes first."
    if answer == NeuronSet(Neuron(name, index) for index in order[-N_NEURONS:]):
        return "These prefer the words: the difference is the wrong way round."
    return f"{len(answer & right)} of your {N_NEURONS} neurons are among the best {N_NEURONS}."


# 5 ------------------------------------------------------------------------------------------------


def share_of_controls(setting: Setting, answer: Any) -> str | None:  # noqa: ARG001
    """The share of random controls that do at least as much harm."""
    sizes = {"blocks.0.mlp.hook_post": 40}
    neurons = NeuronSet.from_indices({"blocks.0.mlp.hook_post": [7, 21]}, sizes=sizes)
    harms: list[tuple[Callable[[NeuronSet], float], str]] = [
        (lambda _: 1.0, "Where all do the same harm, each control does *at least* as much."),
        (lambda some: 1.0 if some == neurons else 0.0, "No control does the neurons' harm here."),
        (lambda some: float(sum(n.index for n in some)), "The controls have the seeds 0 to n - 1."),
    ]
    for harm, hint in harms:
        result, complaint = called(answer, harm, neurons, sizes, 25)
        if complaint is not None:
            return complaint
        number = as_number(result)
        if number is None:
            return f"It returned a {type(result).__name__}; expected one number."
        controls = [neurons.sample_control(sizes, seed=seed) for seed in range(25)]
        right = sum(harm(control) >= harm(neurons) for control in controls) / 25
        if abs(number - 25 * right) < _CLOSE < abs(number - right):
            return "That is how many controls; asked for is their share."
        if abs(number - right) > _CLOSE:
            return f"With a made-up harm it returned {number:.3g}. {hint}"
    return None


# 6 ------------------------------------------------------------------------------------------------


def neighbours(setting: Setting, answer: Any) -> str | None:
    """The positions within some patches of others, in every direction."""
    tokens = setting.token_map
    shown = tokens.positions("image")
    cells = {tokens.cell(p): p for p in shown}
    rows, cols = max(cells)[0] + 1, max(cells)[1] + 1
    cases = [
        ([cells[rows // 2, cols // 2]], 0, "At distance 0 there is nothing but the positions."),
        ([cells[rows // 2, cols // 2]], 1, "In the middle, a patch has eight neighbours."),
        ([cells[2, cols - 1]], 1, "At the right border: the next position is on the other side."),
        ([cells[0, 0], cells[rows - 1, cols - 1]], 2, "Two corners at once, at a distance of 2."),
    ]
    for some, distance, what in cases:
        result, complaint = called(answer, tokens, some, distance)
        if complaint is not None:
            return complaint
        right = {
            p
            for (row, col), p in cells.items()
            if any(
                max(abs(row - tokens.cell(q)[0]), abs(col - tokens.cell(q)[1])) <= distance
                for q in some
            )
        }
        try:
            given = set(result)
        except TypeError:
            return f"It returned a {type(result).__name__}; expected positions."
        if not given <= set(shown):
            return f"{what} It returned positions that show no patch: {sorted(given - set(shown))}."
        if given != right:
            return f"{what} {len(given - right)} are too many and {len(right - given)} are missing."
    return None


# 7 ------------------------------------------------------------------------------------------------


def shape_head(setting: Setting, answer: Any) -> str | None:
    """The head that moves the shape and not the colour."""
    cfg = setting.model.cfg
    try:
        layer, head = (int(number) for number in answer)
    except (TypeError, ValueError):
        return f"Expected (layer, head), got {answer!r}."
    if not (0 <= layer < cfg.n_layers and 0 <= head < cfg.n_heads):
        return f"There are {cfg.n_layers} layers of {cfg.n_heads} heads, counted from 0."
    shape, color = setting.moved["shape"], setting.moved["color"]
    scores = shape - color
    if (layer, head) == divmod(int(scores.argmax()), cfg.n_heads):
        return None
    return (
        f"Head {layer}.{head} moves {float(shape[layer, head]):.2f} of the shape and "
        f"{float(color[layer, head]):.2f} of the colour; another one differs more."
    )
