"""What a run itself says about the rows of its activations: which are real, and whose they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformer_lens.utilities import Slice

from vlm_lens.hooks import Tap
from vlm_lens.hooks.bound import Bound
from vlm_lens.inputs import TokenMap
from vlm_lens.inputs.owners import READ, TOKENS, PositionOwners


@contextmanager
def arguments_of(hf_model: nn.Module) -> Iterator[dict[str, Any]]:
    """Collect the keyword arguments that a model's forward gets while the block runs.

    Yields:
        A dictionary that holds them after the forward.
    """
    found: dict[str, Any] = {}
    handle = hf_model.register_forward_pre_hook(Bound(_read, found), with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()


def _read(found: dict[str, Any], _module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
    found.update(kwargs)


def owners_of_run(
    hf_model: Any,
    arguments: Mapping[str, Any],
    taps: Mapping[str, Tap],
    kept: Iterable[str],
    token_maps: Sequence[TokenMap] | None,
    *,
    positions: Slice | None = None,
) -> Callable[[], PositionOwners | None]:
    """What finds out whose the rows are of what was kept; made while its hooks are still set.

    A run must not wait for a device to hand masks over that no one may ask for.

    Args:
        hf_model: The model.
        arguments: Keyword arguments of its forward.
        taps: Hook points by name.
        kept: The names of the activations that were kept.
        token_maps: One map for each sample, if the model was run on what `prepare` returns.
        positions: Which positions of the sequences were kept; None for all.

    Returns:
        A call that gives None if the forward got neither tokens, nor embeddings, nor pixels.
    """
    layouts = {name: taps[name].patch_rows for name in kept if name in taps}
    return partial(
        _owners,
        _said_of_rows(arguments),
        token_maps,
        {name: rows.index for name, rows in layouts.items() if rows is not None},
        getattr(hf_model.config, "num_query_tokens", None),
        (lambda mask: mask) if positions is None else partial(positions.apply, dim=1),
    )


def _said_of_rows(arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """What the arguments say of rows; of a tower alone, how many pictures there are."""
    said = {name: arguments[name] for name in READ if arguments.get(name) is not None}
    if any(name in said for name in TOKENS):
        return said
    pixels, mask = (arguments.get(name) for name in ("pixel_values", "pixel_attention_mask"))
    if pixels is None:
        return {}
    # The pixels themselves are not kept.
    counted = {"pixel_values": pixels.new_empty(len(pixels), 0)}
    return counted if mask is None else {**counted, "pixel_attention_mask": mask}


def _owners(
    arguments: Mapping[str, Any],
    token_maps: Sequence[TokenMap] | None,
    index: Mapping[str, Tensor],
    n_queries: int | None,
    cut: Callable[[Tensor], Tensor],
) -> PositionOwners | None:
    if not arguments:
        return None
    shown = {name: (rows >= 0).cpu() for name, rows in index.items()}
    return PositionOwners.of_run(
        arguments,
        token_maps,
        patches={name: real for name, real in shown.items() if not real.all()},
        n_queries=n_queries,
        cut=cut,
    )
