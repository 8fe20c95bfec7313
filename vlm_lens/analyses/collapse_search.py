"""Measuring a model without the best k of a ranking, each k once, with a checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL.Image import Image

from vlm_lens.masking.measurement import Measurement
from vlm_lens.masking.metrics import (
    AGREEMENT,
    COLLAPSE,
    DEGRADED,
    PERPLEXITY,
    PERPLEXITY_RATIO,
    Criterion,
    Metric,
)
from vlm_lens.masking.row_masks import Fill
from vlm_lens.masking.runs import MaskedRun, MaskedRuns
from vlm_lens.masking.search import smallest
from vlm_lens.neurons import NeuronSet
from vlm_lens.passes.batch import Batch
from vlm_lens.results import HALF_DONE, hf_model_of, provenance, read_result, write_result
from vlm_lens.results.packing import packed, unpacked
from vlm_lens.results.provenance import digest_of_weights

OnMeasure = Callable[[Measurement], None]
_FREE = (PERPLEXITY, PERPLEXITY_RATIO, AGREEMENT)


@dataclass(kw_only=True)
class SearchOptions:
    """How a critical set is searched; `can.find_critical` and `pcicn.find_critical` take these.

    Attributes:
        max_k: The largest set that is tried; by default the whole ranking.
        collapse: The criteria that all have to be met; they are measured in this order, and the
            rest is spared where one is not met.
        degraded: Where expressive degradation begins.
        metrics: Further metrics to measure at every k.
        also_at: Some k to measure whatever the search asks for, to compare with other rankings.
        fill: What masked neurons are set to, by hook name; zero by default.
        first_token: Whether the first token of each sequence is masked as well.
        reuse: Whether to compute only once what no masked neuron can change.
        rows: At most so many rows (samples times k) run as one batch.
        width: How many k are tried together; by default 1 on the CPU, where a larger batch takes
            as much longer, and 4 elsewhere.
        probes: How many k below a result are tried, to notice a curve that is not monotone.
        exhaustive: Whether to try 1, 2, 3, ... instead of galloping and bisecting: the only way to
            be sure of the smallest k on such a curve.
        max_new_tokens: At most so many tokens of a masked answer.
        checkpoint: A folder in which measurements are kept, so that an interrupted search goes on
            where it was.
        on_measure: Is told every measurement.

    Raises:
        ValueError: `degraded` is not measured at every k, or a k is negative.
    """

    max_k: int | None = None
    collapse: Sequence[Criterion] = COLLAPSE
    degraded: Criterion = DEGRADED
    metrics: Sequence[Metric] = ()
    also_at: Sequence[int] = ()
    fill: Fill | None = None
    first_token: bool = True
    reuse: bool = True
    rows: int = 64
    width: int | None = None
    probes: int = 8
    exhaustive: bool = False
    max_new_tokens: int = 20
    checkpoint: Path | None = None
    on_measure: OnMeasure | None = None

    def __post_init__(self) -> None:
        name = self.degraded.metric.name
        if name not in {metric.name for metric in (*_FREE, *self.metrics)}:
            raise ValueError(
                f"degraded is judged by {name!r}, which is not measured at every k: add it to "
                "metrics"
            )
        if wrong := [k for k in self.also_at if k < 0]:
            raise ValueError(f"expected also_at of numbers of at least 0, got {wrong[0]}")

    def as_parameters(self) -> dict[str, Any]:
        """What decides about the result, in a form that can be saved."""
        return {
            "max_k": self.max_k,
            "collapse": [str(criterion) for criterion in self.collapse],
            "degraded": str(self.degraded),
            "metrics": [metric.name for metric in self.metrics],
            "fill": "zero" if self.fill is None else "values",
            "first_token": self.first_token,
            "exhaustive": self.exhaustive,
            "probes": self.probes,
            "max_new_tokens": self.max_new_tokens,
        }


class Meter:
    """Measures a model without the best k of a ranking, for any k."""

    def __init__(
        self,
        model: Any,
        batches: Sequence[Batch],
        ranking: NeuronSet,
        options: SearchOptions,
        *,
        reuse: bool,
        rows: int,
    ) -> None:
        self._options = options
        self.device = next(model.parameters()).device
        self._runs = MaskedRuns(
            model,
            batches,
            ranking,
            fill=options.fill,
            first_token=options.first_token,
            reuse=reuse,
            rows=rows,
            max_new_tokens=options.max_new_tokens,
        )
        criteria = [criterion.metric for criterion in options.collapse]
        asking = [metric.name for metric in (*criteria, *options.metrics) if metric.generates]
        if asking and not self._runs.generates:
            raise TypeError(
                f"{asking[0]!r} is measured on masked answers, which are not generated with "
                "TransformerBridge (it has neither cache nor padding there): give criteria that "
                "need none (perplexity and agreement), or use a HookedVLM of the same model."
            )

    @cached_property
    def _clean(self) -> MaskedRun:
        [losses] = self._runs.losses([0])
        return MaskedRun(self._runs, 0, losses)

    def run(self, ks: Sequence[int]) -> list[MaskedRun]:
        """Forwards for several k at once, without a judgement."""
        missing = [k for k in ks if k != 0]
        losses = self._runs.losses(missing) if missing else []
        runs = [
            MaskedRun(self._runs, k, at_k, self._clean)
            for k, at_k in zip(missing, losses, strict=True)
        ]
        return [self._clean, *runs] if 0 in ks else runs

    def judged(self, run: MaskedRun) -> Measurement:
        """All metrics of a run, as far as they are needed to judge it."""
        values = {metric.name: metric.of(run) for metric in (*_FREE, *self._options.metrics)}
        collapsed = True
        for criterion in self._options.collapse:
            name = criterion.metric.name
            if name not in values:
                values[name] = criterion.metric.of(run)
            collapsed = criterion.is_met(values[name])
            if not collapsed:
                break
        answers = tuple(run.answers) if run.has_answers else None
        return Measurement(k=run.k, metrics=values, collapsed=collapsed, answers=answers)

    def with_answers(self, known: Measurement) -> Measurement:
        """A measurement with the masked answers that a reader wants to see."""
        if known.answers is not None or not self._runs.generates:
            return known
        return replace(known, answers=tuple(self._runs.texts(self._runs.generated(known.k))))


class Search:
    """Measurements by k, made when they are asked for, and kept."""

    def __init__(self, meter: Meter, options: SearchOptions, fingerprint: str) -> None:
        self._meter, self._options, self._fingerprint = meter, options, fingerprint
        self._width = options.width or (1 if meter.device.type == "cpu" else 4)
        self._judged: dict[int, Measurement] = {}
        self._runs: dict[int, MaskedRun] = {}
        self._read_checkpoint()

    def first(self, test: Callable[[Measurement], bool], *, n: int) -> int | None:
        """The smallest k that is found to pass a test."""

        def passes(ks: Sequence[int]) -> Iterator[bool]:
            self._run(ks)
            for k in ks:  # the search stops at the first that passes: the others are not judged
                yield test(self.at(k))

        options = self._options
        return smallest(
            passes, n=n, width=self._width, probes=options.probes, exhaustive=options.exhaustive
        )

    def at(self, k: int) -> Measurement:
        """The measurement at one k."""
        if k not in self._judged:
            self._run([k])
            self._keep(self._meter.judged(self._runs.pop(k)))
        return self._judged[k]

    def _run(self, ks: Sequence[int]) -> None:
        missing = [k for k in ks if k not in self._judged and k not in self._runs]
        if missing:
            self._runs |= {run.k: run for run in self._meter.run(missing)}

    def show_answers(self, k: int) -> None:
        """Sees to it that a measurement has the masked model's answers."""
        before = self.at(k)
        after = self._meter.with_answers(before)
        if after is not before:
            self._keep(after)

    @property
    def curve(self) -> tuple[Measurement, ...]:
        """All measurements, by k."""
        return tuple(self._judged[k] for k in sorted(self._judged))

    # Checkpoint ---------------------------------------------------------------------------------

    def _read_checkpoint(self) -> None:
        """Reads what an interrupted search of the same kind has measured."""
        folder = self._options.checkpoint
        if folder is None or not (folder / "search.json").exists():
            return
        fields, _ = read_result(folder, kind="search", loses=HALF_DONE)
        if fields["fingerprint"] != self._fingerprint:
            raise ValueError(
                f"{str(folder)!r} holds the measurements of another search (other neurons, samples "
                "or options): choose another folder, or delete its search.json"
            )
        known = unpacked(tuple[Measurement, ...], fields["measurements"], {})
        self._judged = {measurement.k: measurement for measurement in known}

    def _keep(self, measurement: Measurement) -> None:
        self._judged[measurement.k] = measurement
        if self._options.checkpoint is not None:
            fields = {"fingerprint": self._fingerprint, "measurements": packed(self.curve, "", {})}
            write_result(self._options.checkpoint, kind="search", fields=fields)
        if self._options.on_measure is not None:
            self._options.on_measure(measurement)


def fingerprint(
    model: Any, batches: Sequence[Batch], ranking: NeuronSet, options: SearchOptions
) -> str:
    """What the measurements depend on, in short."""
    samples = [sample for batch in batches for sample in batch.samples]
    parts = {
        "model": {**provenance(model), "date": None},
        "weights": digest_of_weights(hf_model_of(model)),
        "ranking": [str(neuron) for neuron in ranking],
        "samples": [(s.text, s.answer, [_pixels(image) for image in s.images]) for s in samples],
        "scored": [token for b in batches for token in b.targets[b.scored].tolist()],
        "options": {**options.as_parameters(), "max_k": None},
        "fill": {name: values.tolist() for name, values in (options.fill or {}).items()},
    }
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _pixels(image: Image) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()
