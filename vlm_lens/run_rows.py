"""What a run itself says about the rows of its activations: which are real, and whose they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformer_lens.utilities import Slice

from vlm_lens.hooks import Tap
from vlm_lens.inputs import TokenMap
from vlm_lens.inputs.owners import PositionOwners


@contextmanager
def arguments_of(hf_model: nn.Module) -> Iterator[dict[str, Any]]:
    """Collect the keyword arguments that a model's forward gets while the block runs.

    Yields:
        A dictionary that holds them after the forward.
    """
    found: dict[str, Any] = {}

    def read(_module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        found.update(kwargs)

    handle = hf_model.register_forward_pre_hook(read, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()


def owners_of_run(
    hf_model: Any,
    arguments: Mapping[str, Any],
    taps: Mapping[str, Tap],
    kept: Iterable[str],
    token_maps: Sequence[TokenMap] | None,
    *,
    real: Tensor | None = None,
    positions: Slice | None = None,
) -> PositionOwners | None:
    """What is known of the rows of what was kept, while its hooks are still set.

    Args:
        hf_model: The model.
        arguments: Keyword arguments of its forward.
        taps: Hook points by name.
        kept: The names of the activations that were kept.
        token_maps: One map for each sample, if the model was run on what `prepare` returns.
        real: See `PositionOwners.of_run`.
        positions: Which positions of the sequences were kept; None for all.

    Returns:
        None if the forward got neither tokens nor embeddings.
    """
    if not {"input_ids", "inputs_embeds"} & arguments.keys():
        return None
    layouts = {name: taps[name].patch_rows for name in kept if name in taps}
    shown = {name: rows.index >= 0 for name, rows in layouts.items() if rows is not None}
    return PositionOwners.of_run(
        arguments,
        token_maps,
        real=real,
        patches={name: real.cpu() for name, real in shown.items() if not real.all()},
        n_queries=getattr(hf_model.config, "num_query_tokens", None),
        cut=(lambda mask: mask) if positions is None else partial(positions.apply, dim=1),
    )
