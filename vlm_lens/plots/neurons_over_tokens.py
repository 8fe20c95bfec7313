"""Many neurons' activations over the tokens of a text, drawn by CircuitsVis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Shaped
from torch import Tensor

from vlm_lens.plots import circuits, style
from vlm_lens.plots.html_figure import ScriptFigure
from vlm_lens.plots.sampling import evenly

_MOST_TOKENS, _MOST_VALUES = 600, 200_000
_DIGITS = 4


def neurons_over_tokens(
    tokens: Sequence[str],
    activations: Shaped[Tensor, "pos layer neuron"] | Shaped[np.ndarray, "pos layer neuron"],
    *,
    layers: Sequence[str] | None = None,
    neurons: Sequence[str] | None = None,
    title: str = "Activations over tokens",
    label: str = "activation",
) -> ScriptFigure:
    """Draws tokens in the colours of one neuron; two menus choose its layer and its number.

    For one neuron `neuron_over_tokens` needs no script.

    Args:
        tokens: The tokens as text, e.g. ``token_map.tokens``.
        activations: One number per token, layer and neuron; NaN is drawn as 0.
        layers: The layers' names, for the menu; by default their numbers.
        neurons: The neurons' names, likewise. Of more values than fit, the neurons that are most
            active are shown, by the largest magnitude.
        title: The heading.
        label: What the values are, with their unit.

    Returns:
        A page with 1.3 MB of script, which notebooks show in a frame.

    Raises:
        ValueError: There is not one value for each token, or one name for each layer and neuron.

    Example:
        >>> figure = neurons_over_tokens(["<image>", " red"], np.ones((2, 3, 4)))
        >>> "2 tokens, 3 layers, 4 neurons" in figure.html
        True
    """
    from circuitsvis.activations import text_neuron_activations

    values = np.nan_to_num(style.to_numpy(activations))
    n_tokens, n_layers, n_neurons = values.shape
    rows, columns = _names(layers, n_layers), _names(neurons, n_neurons)
    if (len(tokens), len(rows), len(columns)) != values.shape:
        raise ValueError(
            f"expected activations of {len(tokens)} tokens, {len(rows)} layers and {len(columns)} "
            f"neurons, as there are names, got shape {values.shape}"
        )
    places = evenly(n_tokens, _MOST_TOKENS)
    kept = _most_active(values[places])
    part = values[places][:, :, kept]
    drawn = text_neuron_activations(
        [circuits.as_html(tokens[int(place)]) for place in places],
        np.round(part, _DIGITS),
        "Layer",
        "Neuron",
        [circuits.as_text(name) for name in rows],
        [circuits.as_text(columns[i]) for i in kept],
    )
    remarks = [
        f"{len(places):,} tokens, {n_layers:,} layers, {len(kept):,} neurons. {label}: orange is "
        "positive, blue is negative, white is 0; full colours are this neuron's extremes.",
        f"{len(places):,} of {n_tokens:,} tokens, evenly apart." * (len(places) < n_tokens),
        f"{len(kept):,} of {n_neurons:,} neurons: the most active." * (len(kept) < n_neurons),
    ]
    return circuits.page(drawn, title=title, remarks=remarks, height=300)


def _names(given: Sequence[str] | None, n: int) -> list[str]:
    return [str(i) for i in range(n)] if given is None else [str(name) for name in given]


def _most_active(values: Float[np.ndarray, "pos layer neuron"]) -> list[int]:
    """The neurons that are shown, in order."""
    n_tokens, n_layers, n_neurons = values.shape
    room = max(1, _MOST_VALUES // (n_tokens * n_layers))
    if n_neurons <= room:
        return list(range(n_neurons))
    peaks = np.abs(values).max((0, 1))
    return sorted(np.argsort(-peaks, kind="stable")[:room].tolist())
