"""One pass over data sets: each layer is measured sample by sample while the model runs."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vlm_lens.analyses.miner_inputs import REFUSED, Chunk
from vlm_lens.analyses.miner_layers import run_layers
from vlm_lens.analyses.miner_scores import METRICS
from vlm_lens.analyses.progress import Progress
from vlm_lens.counted import counted
from vlm_lens.inputs import Inputs, TokenMap
from vlm_lens.inputs.samples import why_refused
from vlm_lens.model import HookedVLM

Separate = Callable[[TokenMap], tuple[Int[Tensor, " token"], Bool[Tensor, "modality token"]]]
"""From a prompt's map to the positions of its tokens and the sets that they are in."""

Measure = Callable[..., Float[Tensor, "metric modality neuron"]]
"""From the activations, queries and keys of a prompt's tokens, and their sets, to numbers.

There are no queries and keys in a layer without self-attention. What comes in is in float32, or in
the model's own dtype where that is wider.
"""

NOT_FINITE = "its activations are infinite or NaN"
"""Why a sample does not count; those that cannot be prepared have the error as their reason."""

_WITH = "with"


class LeftOutWarning(UserWarning):
    """Samples do not count: they cannot be prepared, or something about them is not finite."""


@dataclass(frozen=True, eq=False)
class PassResult:
    """What a pass gives.

    Attributes:
        sums: Of each data set, the measures added up over its samples.
        n_samples: How many samples of each data set count.
        n_with: In how many of these each set has a token, by data set and set.
        left_out: The numbers of the samples that do not count, by data set.
        notes: What a reader must know.
    """

    sums: dict[str, Float[Tensor, "metric modality layer neuron"]]
    n_samples: dict[str, int]
    n_with: dict[str, dict[str, int]]
    left_out: dict[str, list[int]]
    notes: tuple[str, ...]


class Pass:
    """Measures all layers in all samples, batch by batch.

    Args:
        model: The model.
        names: One hook point for each layer.
        chunks: The batches.
        separate: Says which tokens are measured together.
        measure: Measures one layer in one sample.
        rotated: Whether queries and keys are those after rotary positions.
    """

    def __init__(
        self,
        model: HookedVLM,
        names: Sequence[str],
        chunks: Sequence[Chunk],
        separate: Separate,
        measure: Measure,
        *,
        rotated: bool,
    ) -> None:
        self._model, self._names, self._chunks = model, list(names), list(chunks)
        self._separate, self._measure, self._rotated = separate, measure, rotated
        self._datasets = list(dict.fromkeys(chunk.dataset for chunk in chunks))

    # Batches ----------------------------------------------------------------------------------

    def step(self, progress: Progress) -> Progress:
        """This and the next batch."""
        number = progress.n_batches
        before = sum(len(chunk) for chunk in self._chunks[:number])
        chunk = self._chunks[number]
        sums: dict[str, Tensor] = {}
        left_out = [before + i for i in self._add(chunk, sums)]
        place = self._datasets.index(chunk.dataset)
        flat = {f"{place}/{name}": total.flatten() for name, total in sums.items()}
        return progress.plus(flat, left_out=left_out)

    def _add(self, chunk: Chunk, sums: dict[str, Tensor]) -> list[int]:
        """Adds a batch's measures; returns the places of the samples that do not count."""
        try:
            inputs = chunk.prepare(self._model)
        except REFUSED as error:
            if isinstance(chunk.content, Inputs):
                error.add_note(f"These are prepared inputs of data set {chunk.dataset!r}.")
                raise
            if len(chunk) == 1:
                return [0]
            parts = enumerate(chunk.singles())
            return [place for place, single in parts if self._add(single, sums)]
        skipped: set[int] = set()
        found, finite = self._sums(inputs, skipped)
        if not finite.all():
            skipped = set((~finite).nonzero()[:, 0].tolist())
            found, _ = self._sums(inputs, skipped)
        for name, total in found.items():
            sums[name] = sums[name] + total if name in sums else total
        return sorted(skipped)

    def _sums(
        self, inputs: Inputs, skipped: set[int]
    ) -> tuple[dict[str, Tensor], Bool[Tensor, " sample"]]:
        """The measures of a batch added up, by hook point, and which samples' are finite."""
        samples = [
            (i, *self._separate(token_map))
            for i, token_map in enumerate(inputs.token_map)
            if i not in skipped
        ]
        finite = torch.ones(len(inputs.token_map), dtype=torch.bool, device=inputs.input_ids.device)
        sums: dict[str, Tensor] = {}

        def on_layer(name: str, activations: Tensor, *heads: Tensor | None) -> None:
            _check_shape(name, activations, inputs)
            for i, *separated in samples:
                positions, sets = (tensor.to(activations.device) for tensor in separated)
                own = [_wide(t[i, positions]) if t is not None else None for t in heads]
                found = self._measure(_wide(activations[i, positions]), *own, sets)
                finite[i] &= found.isfinite().all().to(finite.device)
                sums[name] = sums[name] + found if name in sums else found

        run_layers(self._model, inputs, self._names, on_layer, rotated=self._rotated)
        _check_alike(sums)
        if samples:
            sums[_WITH] = torch.stack([sets.any(1) for _, _, sets in samples]).sum(0).double()
        return sums, finite

    # What is found ----------------------------------------------------------------------------

    def result(self, progress: Progress, modalities: Sequence[str]) -> PassResult:
        """Everything that all batches gave.

        Args:
            progress: After the last batch.
            modalities: The names of the sets.

        Raises:
            ValueError: No sample of a data set counts.

        Warns:
            LeftOutWarning: Some samples do not.
        """
        left_out: dict[str, list[int]] = {name: [] for name in self._datasets}
        reasons: Counter[str] = Counter()
        for chunk, place in self._at(progress.left_out):
            left_out[chunk.dataset].append(chunk.first + place)
            reasons[f"{chunk.dataset!r}: {self._reason(chunk, place)}"] += 1
        n_samples = {
            name: sum(len(c) for c in self._chunks if c.dataset == name) - len(left_out[name])
            for name in self._datasets
        }
        notes = [f"{counted(n, 'sample')} left out of {reason}" for reason, n in reasons.items()]
        if nothing := [name for name, n in n_samples.items() if not n]:
            raise ValueError(f"no sample of data set {nothing[0]!r} counts: {'; '.join(notes)}")
        if notes:
            warnings.warn("; ".join(notes), LeftOutWarning, stacklevel=4)
        sums = {
            name: self._together(progress, place, len(modalities))
            for place, name in enumerate(self._datasets)
        }
        n_with = {
            name: dict(zip(modalities, map(int, progress.sums[f"{i}/{_WITH}"]), strict=True))
            for i, name in enumerate(self._datasets)
        }
        never = [m for m in modalities if not any(counts[m] for counts in n_with.values())]
        if never:
            notes.append(
                f"never in these data sets, and left out of selections: {', '.join(never)}"
            )
        if silent := [name for name in self._names if not self._ran(progress, name)]:
            notes.append(f"never ran, so that nothing in them is important: {', '.join(silent)}")
        return PassResult(sums, n_samples, n_with, left_out, tuple(notes))

    def _together(
        self, progress: Progress, place: int, n_modalities: int
    ) -> Float[Tensor, "metric modality layer neuron"]:
        """One data set's sums; a layer that never ran has 0."""
        ran = [total for key, total in progress.sums.items() if not key.endswith(f"/{_WITH}")]
        layers = [
            progress.sums.get(f"{place}/{name}", torch.zeros_like(ran[0])) for name in self._names
        ]
        shape = (len(METRICS), n_modalities, -1)
        return torch.stack([layer.view(shape) for layer in layers], dim=2)

    def _ran(self, progress: Progress, name: str) -> bool:
        """Whether a layer ran for any sample; Mllama's cross-attention needs an image."""
        return any(f"{place}/{name}" in progress.sums for place in range(len(self._datasets)))

    def _at(self, numbers: Sequence[int]) -> Iterator[tuple[Chunk, int]]:
        """The chunk of each sample, counted through all of them, and its place there."""
        for number in numbers:
            for chunk in self._chunks:
                if number < len(chunk):
                    yield chunk, number
                    break
                number -= len(chunk)

    def _reason(self, chunk: Chunk, place: int) -> str:
        """Why a sample does not count."""
        if isinstance(chunk.content, Inputs):
            return NOT_FINITE
        try:
            chunk.singles()[place].prepare(self._model)
        except REFUSED as error:
            return why_refused(error)
        return NOT_FINITE


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _check_alike(sums: dict[str, Tensor]) -> None:
    sizes = {name: total.shape[-1] for name, total in sums.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"expected sites with the same number of neurons in every layer, got {sizes}: choose "
            "sites of one kind"
        )


def _check_shape(name: str, activations: Any, inputs: Inputs) -> None:
    if activations.ndim != 3 or activations.shape[:2] != inputs.shape:
        raise ValueError(
            f"expected activations of the prompt's {inputs.shape[0]} x {inputs.shape[1]} positions "
            f"at {name!r}, got shape {tuple(activations.shape)}"
        )
