"""What a token attends to in an image, head by head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Shaped
from torch import Tensor

from vlm_lens.inputs import TokenMap, load_image
from vlm_lens.inputs.images import ImageSource
from vlm_lens.plots import style
from vlm_lens.plots.image_panels import Panel, image_panels
from vlm_lens.plots.mosaic import Mosaic
from vlm_lens.plots.sampling import chosen_heads

if TYPE_CHECKING:
    import plotly.graph_objects as go

_MOST_HEADS = 15
_HOVER = (
    "WHAT %{customdata[0]}, x %{customdata[1]:.0f} to %{customdata[3]:.0f}, "
    "y %{customdata[2]:.0f} to %{customdata[4]:.0f}<br>attention <b>%{z:.4g}</b>"
)


def attention_over_image(
    image: ImageSource,
    attention: Shaped[Tensor, "head key"] | Shaped[np.ndarray, "head key"],
    token_map: TokenMap,
    *,
    position: int | None = None,
    heads: Sequence[int] | None = None,
    image_index: int = 0,
    patches: bool = False,
    view: int | None = None,
    title: str | None = None,
    limit: float | None = None,
) -> go.Figure:
    """Draws how much each patch of an image gets of a token's attention, head by head.

    Above each heat map stands the share of the head's attention that goes to this image. All have
    the same colours. Where an image becomes several views (tiles and a thumbnail), a place shows
    the view with the smallest patches; the shares count all of them.

    Args:
        image: The original image, as any source that `load_image` reads.
        attention: The weights of one query, e.g. ``cache["pattern", 3][0, :, -1]``. For what a
            patch *receives* from all later tokens, take a column of the pattern instead.
        token_map: What the keys are, e.g. ``inputs.token_map[0]``.
        position: The position whose attention this is; it is named, and outlined where it shows a
            patch of this image.
        heads: Which heads. By default all, and of more than 15 those that attend to the image most.
        image_index: Which of the sample's images.
        patches: Whether the keys are the encoder's patches, of an encoder's own attention or of a
            cross-attention, and not the positions of the language model.
        view: With `patches`: which of the pictures that the encoder sees of the image the keys
            belong to; by default all of them, one after the other.
        title: By default, whose attention it is.
        limit: The weight that gets the full colour, to give several figures one scale.

    Raises:
        ValueError: There is not one weight for each key, or the positions show no patches.
        IndexError: There is no such head, position, image or view.

    Example:
        >>> from vlm_lens import HookedVLM, load_samples
        >>> from vlm_lens.shapes_llava import IMAGES
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> sample = load_samples(IMAGES)[3]
        >>> inputs = model.prepare(images=sample.images, text=sample.text)
        >>> _, cache = model.run_with_cache(inputs)
        >>> last = cache["pattern", 3][0, :, -1]
        >>> figure = attention_over_image(
        ...     sample.images[0], last, inputs.token_map[0], position=-1)
        >>> [heatmap.name.split(":")[0] for heatmap in figure.data]
        ['mean of 4 heads', 'head 0', 'head 1', 'head 2', 'head 3']
    """
    weights = style.to_numpy(attention)
    if not patches and weights.shape[1] != len(token_map):
        raise ValueError(
            f"expected one weight for each of {len(token_map)} positions, got {weights.shape[1]}: "
            "say patches=True where the keys are patches of the encoder"
        )
    mosaic = (
        Mosaic.of_patches(token_map, weights.shape[1], image=image_index, view=view)
        if patches
        else Mosaic.of_tokens(token_map, image=image_index)
    )
    on_image = _on_image(weights, token_map, image_index, mosaic, patches=patches)
    which, note = chosen_heads(np.nan_to_num(on_image), heads, _MOST_HEADS)
    remarks = [note]
    if (left := weights.shape[1] - len(mosaic.shown)) and patches:
        remarks.append(f"{left} of {weights.shape[1]} keys have no place of their own.")
    return image_panels(
        load_image(image),
        _panels(weights, on_image, which, mosaic),
        x=mosaic.x,
        y=mosaic.y,
        title=title or f"Attention {_whose(token_map, position, patches)} over the image",
        label="attention (share)",
        hover=_HOVER.replace("WHAT", "key" if patches else "position"),
        remarks=remarks,
        limit=limit,
        outline=_outline(token_map, position, image_index, mosaic, patches),
    )


def _on_image(
    weights: Float[np.ndarray, "head key"],
    token_map: TokenMap,
    image_index: int,
    mosaic: Mosaic,
    *,
    patches: bool,
) -> Float[np.ndarray, " head"]:
    """The share of each head's attention that the image gets."""
    keys = mosaic.shown if patches else token_map.positions("image", image=image_index)
    return weights[:, keys].sum(1)


def _panels(
    weights: Float[np.ndarray, "head key"],
    on_image: Float[np.ndarray, " head"],
    which: Sequence[int],
    mosaic: Mosaic,
) -> list[Panel]:
    cells = mosaic.cells()
    named = [(f"head {head}", weights[head], on_image[head]) for head in which]
    if len(which) > 1:
        mean = weights[list(which)].mean(0), on_image[list(which)].mean()
        named.insert(0, (f"mean of {len(which)} heads", *mean))
    return [Panel(f"{name}: {share:.0%}", mosaic.spread(w), cells) for name, w, share in named]


def _whose(token_map: TokenMap, position: int | None, patches: bool) -> str:
    if position is None:
        return "of a query"
    if patches:
        return f"of position {position}"
    place = range(len(token_map))[position]
    return f"of position {place}, {token_map.tokens[place]!r},"


def _outline(
    token_map: TokenMap, position: int | None, image_index: int, mosaic: Mosaic, patches: bool
) -> tuple[float, float, float, float] | None:
    """The border of the query's own patch."""
    if position is None:
        return None
    if patches:
        return mosaic.box(position) if position in mosaic.shown else None
    place = range(len(token_map))[position]
    is_here = token_map.image_index[place] == image_index and token_map.cells[place] != (-1, -1)
    return token_map.box(place) if is_here else None
