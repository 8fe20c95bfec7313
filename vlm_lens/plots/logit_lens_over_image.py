"""What the positions of an image decode to, patch by patch, with a slider for the depth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from vlm_lens.inputs import TokenMap, load_image
from vlm_lens.inputs.images import ImageSource
from vlm_lens.plots import style
from vlm_lens.plots.decoded import Decoded
from vlm_lens.plots.image_panels import Panel, image_panels
from vlm_lens.plots.layout import INK, shown
from vlm_lens.plots.mosaic import NOTHING, Mosaic
from vlm_lens.plots.sampling import evenly

if TYPE_CHECKING:
    import plotly.graph_objects as go

_SHORTEST, _LONGEST, _CELL, _SLIDER = 540, 760, 30, 84
"""The side of the picture, that of a cell where the picture is not too long for it, the slider's
height, in pixels."""
_MOST_CELLS = 24_000
_LETTER, _LARGE, _SMALL = 6.5, 11, 9
_FEWEST_LETTERS, _ROOMY = 4, 7


def logit_lens_over_image(
    image: ImageSource,
    lens: Decoded,
    token_map: TokenMap,
    *,
    follow: str | None = None,
    image_index: int = 0,
    title: str | None = None,
) -> go.Figure:
    """Draws the most probable token of each patch over the image; a slider chooses the depth.

    The colour is the token's probability, or that of one token. A patch that is pointed at names
    its best tokens.

    Args:
        image: The original image, as any source that `load_image` reads.
        lens: What a lens found, e.g. `vlm_lens.analyses.logit_lens.logit_lens`, at positions of
            the image.
        token_map: What the positions are, e.g. ``inputs.token_map[0]``.
        follow: Draw this token's probability, one of those that `logit_lens` was asked to follow.
        image_index: Which of the sample's images.
        title: By default, what is drawn.

    Raises:
        ValueError: No position of the image was decoded, or its positions show no patches.
        KeyError: The token was not followed.
        IndexError: There is no such image.

    Example:
        >>> from vlm_lens import HookedVLM, load_samples
        >>> from vlm_lens.analyses.logit_lens import logit_lens
        >>> from vlm_lens.shapes_llava import IMAGES
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> sample = load_samples(IMAGES)[3]
        >>> inputs = model.prepare(images=sample.images, text=sample.text)
        >>> lens = logit_lens(model, inputs)
        >>> figure = logit_lens_over_image(sample.images[0], lens, inputs.token_map[0])
        >>> len(figure.data), figure.data[6].z.shape
        (7, (8, 8))
    """
    mosaic = Mosaic.of_tokens(token_map, image=image_index)
    if not set(mosaic.shown.tolist()) & set(lens.positions):
        raise ValueError(
            f"expected positions of image {image_index}, but none of them was decoded: call "
            'logit_lens(model, inputs, positions="image")'
        )
    every = _shares(lens, follow)
    kept = evenly(len(lens.depths), max(2, _MOST_CELLS // mosaic.entries.size)).tolist()
    cells = max(mosaic.entries.shape)
    side = min(max(_CELL * cells, _SHORTEST), _LONGEST)
    letters = side / cells / _LETTER
    figure = image_panels(
        load_image(image),
        [_panel(lens, every, kept[-1], mosaic, len(token_map))],
        x=mosaic.x,
        y=mosaic.y,
        title=title or _title(follow),
        label="probability",
        hover="%{customdata}",
        remarks=[
            ""
            if follow or letters >= _FEWEST_LETTERS
            else "A patch names its tokens when pointed at: they are too small to write.",
            f"{len(kept)} of {len(lens.depths)} depths, evenly apart; logit_lens(..., depths=...) "
            "chooses others." * (len(kept) < len(lens.depths)),
        ],
        limit=style.colour_limit(every),
        side=side,
    )
    # A token that is followed shows where it is most probable, often not at the end.
    first = max(kept, key=lambda i: every[i].mean()) if follow else kept[-1]
    [base] = [trace.to_plotly_json() for trace in figure.data]
    figure.data = ()
    for i in kept:
        panel = _panel(lens, every, i, mosaic, len(token_map))
        trace = _layer(base, panel, lens, i, mosaic, letters, follow)
        figure.add_trace(trace | {"visible": i == first})
    _add_slider(figure, [lens.depths[i] for i in kept], kept.index(first))
    return figure


def _title(follow: str | None) -> str:
    return f"Logit lens: probability of {follow!r}" if follow else "Logit lens: most probable token"


def _shares(lens: Decoded, follow: str | None) -> Float[np.ndarray, "depth pos"]:
    if follow is None:
        return style.to_numpy(lens.probabilities[..., 0])
    if follow not in lens.followed:
        raise KeyError(
            f"{follow!r} was not followed, but {list(lens.followed)}: call logit_lens(..., "
            f"follow=[{follow!r}])"
        )
    return style.to_numpy(lens.followed[follow])


def _panel(
    lens: Decoded,
    shares: Float[np.ndarray, "depth pos"],
    depth: int,
    mosaic: Mosaic,
    n_positions: int,
) -> Panel:
    values = np.full(n_positions, np.nan)
    values[list(lens.positions)] = shares[depth]
    return Panel("", mosaic.spread(values), mosaic.cells())


def _layer(
    base: dict[str, Any],
    panel: Panel,
    lens: Decoded,
    depth: int,
    mosaic: Mosaic,
    letters: float,
    follow: str | None,
) -> dict[str, Any]:
    """The heat map of one depth."""
    hints = {p: _hint(lens, depth, i) for i, p in enumerate(lens.positions)}
    said = np.array([[hints.get(entry, "") for entry in row] for row in mosaic.entries.tolist()])
    trace = {**base, "z": panel.values, "customdata": said}
    trace["name"] = f"depth {lens.depths[depth]}"
    if follow is None and letters >= _FEWEST_LETTERS:
        trace["text"] = _labels(lens, depth, mosaic, int(letters))
        trace["texttemplate"] = "%{text}"
        trace["textfont"] = {"size": _LARGE if letters > _ROOMY else _SMALL, "color": INK}
    return trace


def _hint(lens: Decoded, depth: int, place: int) -> str:
    """The best tokens of a position, for the hover text."""
    pos = lens.positions[place]
    shares = lens.probabilities[depth, place].tolist()
    words = lens.words(lens.depths[depth], pos)
    lines = [f"{shown(repr(w))} {share:.3f}" for w, share in zip(words, shares, strict=True)]
    more = [f"{shown(repr(t))} {float(p[depth, place]):.3g}" for t, p in lens.followed.items()]
    followed = ["followed:", *more] if more else []
    return "<br>".join([f"<b>position {pos}, {lens.names[depth]}</b>", *lines, *followed])


def _labels(lens: Decoded, depth: int, mosaic: Mosaic, letters: int) -> np.ndarray:
    """The best token of each patch, in the middle one of its cells."""
    labels = np.full(mosaic.entries.shape, "", dtype=object)
    for pos in lens.positions:
        rows, cols = np.nonzero(mosaic.entries == pos)
        if pos != NOTHING and len(rows):
            middle = len(rows) // 2
            word = lens.words(lens.depths[depth], pos)[0].strip()
            labels[rows[middle], cols[middle]] = shown(word[:letters])
    return labels


def _add_slider(figure: go.Figure, depths: list[int], active: int) -> None:
    """Shows one heat map at a time; animated frames would be drawn again and again."""
    n = len(depths)
    steps = [
        {
            "method": "restyle",
            "args": [{"visible": [i == j for j in range(n)]}],
            "label": "input" if depth == 0 else str(depth),
        }
        for i, depth in enumerate(depths)
    ]
    slider = {
        "active": active,
        "steps": steps,
        "currentvalue": {"prefix": "blocks passed: ", "font": {"size": 13}},
        "font": {"size": 11},
        "pad": {"t": 10, "b": 4},
        "x": 0.01,
        "len": 0.98,
    }
    layout: Any = figure.layout
    layout.update(sliders=[slider], height=layout.height + _SLIDER)
    layout.margin.b += _SLIDER
