"""Data sets that a model cannot take, refused before work starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from vlm_lens.cli.checks import InputError

if TYPE_CHECKING:
    from vlm_lens.data import Sample
    from vlm_lens.model import HookedVLM
    from vlm_lens.passes import Batch


def check_prompts(model: HookedVLM, datasets: Mapping[str, Sequence[Sample]]) -> None:
    """Refuses a data set that the model cannot take; single samples may be left out later."""
    for name, samples in datasets.items():
        taken = []
        for has_images in (True, False):  # some models take no prompt without an image
            kind = [sample for sample in samples if bool(sample.images) == has_images]
            taken += [_first_taken(model, kind)] if kind else []
        if not any(batch is not None for batch, _ in taken):
            reason = next(reason for _, reason in taken)
            raise InputError(
                f"the model can take none of the {len(samples)} samples of {name!r}: {reason}"
            )
        for batch, _ in taken:
            if batch is not None:
                _check_forward(model, name, batch)


def _first_taken(model: HookedVLM, samples: Sequence[Sample]) -> tuple[Batch | None, str]:
    """The first sample that can be prepared, ready; or why the first of all cannot."""
    from vlm_lens.passes import Answers, make_batch
    from vlm_lens.passes.one_pass import REFUSED

    reason = ""
    for sample in samples:
        try:
            return make_batch(model, [sample], Answers()), ""
        except REFUSED as error:
            reason = reason or " ".join(str(error).split())
    return None, reason


def _check_forward(model: HookedVLM, name: str, batch: Batch) -> None:
    """Refuses prompts that can be prepared, but that the model does not run on."""
    from vlm_lens.passes.forwards import forward

    try:
        forward(model, batch)
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise InputError(
            f"the model does not take prompts such as those of {name!r}: {reason}. Choose others "
            "with --tasks or --data"
        ) from error
