"""The attention patterns of a layer's heads, drawn by CircuitsVis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Shaped
from torch import Tensor

from vlm_lens.plots import circuits, style
from vlm_lens.plots.html_figure import ScriptFigure
from vlm_lens.plots.sampling import evenly

_MOST_TOKENS, _MOST_HEADS = 100, 12
_DIGITS = 4


def attention_heads(
    pattern: Shaped[Tensor, "head query key"] | Shaped[np.ndarray, "head query key"],
    tokens: Sequence[str],
    *,
    heads: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    is_causal: bool | None = None,
    title: str = "Attention patterns by head",
) -> ScriptFigure:
    """Draws each head's pattern; the one that is pointed at is drawn large, with its tokens.

    Args:
        pattern: The attention weights of a layer, e.g. ``cache["pattern", 3][0]``.
        tokens: The tokens as text, e.g. ``token_map.tokens``; for the patches of an encoder, any
            names.
        heads: Which heads; by default the first 12.
        positions: Which positions; by default all, or 100 of more of them: runs of equal tokens
            (an image's) are thinned out first.
        is_causal: Whether later positions cannot be seen, which are left grey then; by default
            whether all weights on them are 0.
        title: The heading.

    Returns:
        A page with 1.3 MB of script, which notebooks show in a frame.

    Raises:
        ValueError: There are not as many tokens as queries and keys.
        IndexError: There is no such head or position.

    Example:
        >>> figure = attention_heads(np.eye(2)[None], ["<bos>", " red"])
        >>> "1 head of 2 tokens" in figure.html
        True
    """
    from circuitsvis.attention import attention_heads as draw

    weights = style.to_numpy(pattern)
    n_heads, n_queries, n_keys = weights.shape
    if n_queries != n_keys or n_keys != len(tokens):
        raise ValueError(
            f"expected one query and one key for each of {len(tokens)} tokens, got {n_queries} "
            f"queries and {n_keys} keys; draw cross-attention with attention_over_image"
        )
    shown = _checked(positions, len(tokens), "position") if positions is not None else None
    places = np.array(_thinned(tokens) if shown is None else shown)
    which = list(range(min(n_heads, _MOST_HEADS))) if heads is None else list(heads)
    _checked(which, n_heads, "head")
    if is_causal is None:
        is_causal = not np.triu(np.nan_to_num(weights), 1).any()
    part = weights[which][:, places][:, :, places]
    drawn = draw(
        attention=np.round(np.nan_to_num(part), _DIGITS),
        tokens=[circuits.as_text(_label(tokens, int(place), len(places))) for place in places],
        attention_head_names=[f"{head}" for head in which],
        max_value=style.colour_limit(part),
        min_value=-style.colour_limit(part),
        positive_color=circuits.POSITIVE,
        negative_color=circuits.NEGATIVE,
        mask_upper_tri=is_causal,
    )
    remarks = _remarks(part, len(which), n_heads, len(places), len(tokens), is_causal)
    return circuits.page(drawn, title=title, remarks=remarks, height=900)


def _label(tokens: Sequence[str], place: int, n_shown: int) -> str:
    """A token; where some are left out, with its position: CircuitsVis counts those it is given."""
    return tokens[place] if n_shown == len(tokens) else f"{tokens[place]} @{place}"


def _checked(numbers: Sequence[int], n: int, what: str) -> list[int]:
    for number in numbers:
        if not 0 <= number < n:
            raise IndexError(f"there is no {what} {number}: there are {n}, counted from 0")
    return [int(number) for number in numbers]


def _thinned(tokens: Sequence[str]) -> list[int]:
    """At most a hundred positions; those of the most frequent token are left out first."""
    n = len(tokens)
    if n <= _MOST_TOKENS:
        return list(range(n))
    names, counts = np.unique(np.array(tokens, dtype=object).astype(str), return_counts=True)
    frequent = names[counts.argmax()]
    common = [i for i in range(n) if tokens[i] == frequent]
    others = [i for i in range(n) if tokens[i] != frequent]
    room = max(_MOST_TOKENS - len(others), _MOST_TOKENS // 2)
    kept = [common[i] for i in evenly(len(common), room)]
    rest = [others[i] for i in evenly(len(others), _MOST_TOKENS - len(kept))]
    return sorted([*kept, *rest])


def _remarks(
    part: Float[np.ndarray, "head query key"],
    n_heads: int,
    of_heads: int,
    n_tokens: int,
    of_tokens: int,
    is_causal: bool,
) -> list[str]:
    heads = f"{n_heads} head{'s' * (n_heads != 1)}"
    count = f"{heads} of {n_tokens} tokens; white is 0, orange {style.colour_limit(part):.3g}"
    grey = ", grey are later tokens, which cannot be seen" if is_causal else ""
    fewer = []
    if n_heads < of_heads:
        fewer.append(f"{n_heads} of {of_heads} heads; heads=[...] shows others.")
    if n_tokens < of_tokens:
        fewer.append(
            f"{n_tokens} of {of_tokens} tokens, each with its position behind @; rows do not add "
            "up to 1; positions=[...] shows others."
        )
    broken = "NaN is drawn as 0." if np.isnan(part).any() else ""
    return [f"{count}{grey}.", *fewer, broken]
