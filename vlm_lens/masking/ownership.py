"""Which sample of a batch with answers each position of an activation belongs to."""

from __future__ import annotations

from vlm_lens.inputs.owners import NO_SAMPLE, Owners, PositionOwners
from vlm_lens.masking.examples import Batch

__all__ = ["NO_SAMPLE", "Owners", "Ownership"]


class Ownership:
    """Says which sample each position of an activation belongs to.

    Args:
        batch: The samples, and what the model is given of them.
        first_token: Whether the first token of each of the language model's sequences belongs to
            its sample, or else to none.

    Example:
        >>> from vlm_lens import HookedVLM, load_samples
        >>> from vlm_lens.masking import make_batches
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> [batch] = make_batches(model, load_samples("shapes-llava", n=2))
        >>> owners = Ownership(batch).of("vision_encoder.blocks.0.mlp.hook_post", 2, 64)
        >>> owners[:, 0].tolist()
        [0, 1]
    """

    def __init__(self, batch: Batch, *, first_token: bool = True) -> None:
        self._owners = PositionOwners.of_run(
            batch.arguments, batch.prompts.token_map, real=batch.real, first_token=first_token
        )

    def of(self, name: str, n_rows: int, n_positions: int) -> Owners:
        """As `PositionOwners.of`: `NO_SAMPLE` where a position has no sample."""
        return self._owners.of(name, n_rows, n_positions)
