"""``vlm-lens miner --controls``: what a model loses without a modality's neurons."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from vlm_lens.cli.checks import InputError
from vlm_lens.cli.folder import RunFolder
from vlm_lens.cli.progress import Steps, bar
from vlm_lens.cli.samples import add_longest, add_seeds, check_least
from vlm_lens.cli.values import finite

if TYPE_CHECKING:
    from vlm_lens.analyses.miner_curve import MaskingCurve
    from vlm_lens.analyses.miner_scores import ModalityScores
    from vlm_lens.data import Sample
    from vlm_lens.experiments import Matrix
    from vlm_lens.model import HookedVLM
    from vlm_lens.report.mined import Mined

_RATIOS = (0.02, 0.05, 0.1)


def add_controls(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Adds the options of what is measured beyond scores; returns their group."""
    group = parser.add_argument_group("controls")
    add = group.add_argument
    what = "mask each modality's neurons, random ones, and all others, and ask again (minutes)"
    add("--controls", action="store_true", help=what)
    ratios = f"shares of neurons that are masked (default: {' '.join(map(str, _RATIOS))})"
    add("--ratios", nargs="+", type=finite, default=[*_RATIOS], metavar="X", help=ratios)
    measured = "samples of each data set that are asked (default: %(default)s)"
    add("--n-measured", type=int, default=50, metavar="N", help=measured)
    fill = "what masked neurons are set to (default: %(default)s)"
    add("--fill", choices=("zero", "min"), default="zero", help=fill)
    add_seeds(group)
    add_longest(group, default=40)
    return group


def check_controls(arguments: argparse.Namespace) -> None:
    """Refuses what would be refused in the middle of the work.

    Raises:
        InputError: A number is out of range.
    """
    check_least(arguments, n_measured=1, max_new_tokens=1)
    for ratio in arguments.ratios:
        if not (0 < ratio <= 1 and math.isfinite(ratio)):
            raise InputError(f"expected --ratios above 0 and at most 1, got {ratio}")


@dataclass(frozen=True)
class Controls:
    """Measures tasks with neurons masked, and keeps what is done.

    Attributes:
        folder: Where.
        model: The model.
        arguments: The options.
        step: Says what comes next.
    """

    folder: RunFolder
    model: HookedVLM
    arguments: argparse.Namespace
    step: Steps

    def measured(self, found: Mined, datasets: Mapping[str, Sequence[Sample]]) -> Mined:
        """What was found, with what is lost without it."""
        tasks = self._tasks(found.scores, datasets)
        some = "1 task" if len(tasks) == 1 else f"{len(tasks)} tasks"
        self.step(f"masking the neurons of each modality, on {some}")
        specificity = self._specificity(found, tasks)
        self.step("masking more and more of them")
        curve = self._curve(found.scores, tasks, place="", complement=False)
        self.step("masking all others")
        complement = self._curve(found.scores, tasks, place="complement", complement=True)
        return replace(found, specificity=specificity, curve=curve, complement=complement)

    def _tasks(
        self, scores: ModalityScores, datasets: Mapping[str, Sequence[Sample]]
    ) -> dict[str, list[Sample]]:
        """Of each data set the first samples that count and have an answer."""
        tasks = {}
        for name, samples in datasets.items():
            left_out = set(scores.parameters["left_out"].get(name, ()))
            asked = [
                sample
                for number, sample in enumerate(samples)
                if number not in left_out and (sample.answer or "").strip()
            ]
            if not asked:
                raise InputError(
                    f"--controls grades answers, but no sample of {name!r} that counts has one"
                )
            tasks[name] = asked[: self.arguments.n_measured]
        return tasks

    @property
    def _options(self) -> dict[str, Any]:
        return {
            "seeds": self.arguments.seeds,
            "value": self.arguments.fill,
            "batch_size": self.arguments.batch_size,
            "max_new_tokens": self.arguments.max_new_tokens,
        }

    def _specificity(self, found: Mined, tasks: dict[str, list[Sample]]) -> Matrix:
        from vlm_lens.experiments import Matrix, matrix

        some = {modality: neurons for modality, neurons in found.selected.items() if neurons}
        sizes = found.scores.sizes
        with bar("each modality", "batches") as shown:
            make = partial(
                matrix,
                *(self.model, some, tasks),
                sizes=sizes,
                on_batch=shown.scored,
                **self._options,
            )
            return self.folder.kept("", kind=Matrix.KIND, load=Matrix.load, make=make)

    def _curve(
        self,
        scores: ModalityScores,
        tasks: dict[str, list[Sample]],
        *,
        place: str,
        complement: bool,
    ) -> MaskingCurve:
        """All ratios, each kept as soon as it is measured."""
        from vlm_lens.analyses.miner_curve import MaskingCurve, masking_curve

        how = {"strategy": self.arguments.strategy, "weights": self.arguments.metric_weights}
        options = {**self._options, **how, "complement": complement}
        kept = partial(self.folder.kept, kind=MaskingCurve.KIND, load=MaskingCurve.load)

        def one(ratio: float) -> MaskingCurve:
            inside = self.folder.checkpoint / (place or "curve") / f"{ratio}"
            with bar(f"{'all but ' * complement}{100 * ratio:g}%", "batches") as shown:
                measure = partial(masking_curve, self.model, scores, tasks, ratios=[ratio])
                make = partial(measure, on_batch=shown.scored, **options)
                return kept(str(inside.relative_to(self.folder.path)), make=make)

        ratios = sorted(set(self.arguments.ratios))
        return kept(place, make=lambda: _together([one(ratio) for ratio in ratios]))


def _together(curves: Sequence[MaskingCurve]) -> MaskingCurve:
    """Several ratios as one curve: what the model does as it is, is there once for each task."""
    import pandas as pd

    frame = pd.concat([curve.frame for curve in curves], ignore_index=True)
    is_again = (frame["ratio"] == 0) & frame.duplicated(["task", "ratio"])
    notes = dict.fromkeys(note for curve in curves for note in curve.notes)
    frame = frame[~is_again].reset_index(drop=True)
    return replace(curves[0], frame=frame, notes=tuple(notes))
