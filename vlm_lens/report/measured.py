"""What was measured in a search for critical neurons, as tables of text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from vlm_lens.pages.tables import Table, written

if TYPE_CHECKING:
    from vlm_lens.analyses.critical import CriticalNeurons
    from vlm_lens.masking.measurement import Measurement


def measurements(result: CriticalNeurons) -> Table:
    """Every measurement: what each metric was, and what it means."""
    return _measured(result, result.curve)


def stages(result: CriticalNeurons) -> Table:
    """The measurements that tell the story: clean, where each stage begins, before, and last."""
    onset, k, last = result.stages.onset, result.k, result.curve[-1].k
    told = {0: "clean", last: "largest k"}
    if k is not None:
        told |= {k - 1: "just before"} if k > 1 else {}
    if onset is not None:
        told[onset] = "degradation begins"
    if k is not None:
        told[k] = "degradation and collapse" if k == onset else "collapse"
    chosen = [measurement for measurement in result.curve if measurement.k in told]
    return _measured(result, chosen, told)


def _measured(
    result: CriticalNeurons,
    chosen: Iterable[Measurement],
    told: Mapping[int, str] | None = None,
) -> Table:
    names = list(result.metrics)
    rows = [
        [
            *([] if told is None else [told[m.k]]),
            written(m.k),
            written(m.collapsed),
            *(written(m.metrics.get(name)) for name in names),
        ]
        for m in chosen
    ]
    first = [] if told is None else ["stage"]
    heads = [*first, "k", "collapsed", *(name.replace("_", " ") for name in names)]
    return Table(heads, rows, [*(False for _ in first), True, False, *(True for _ in names)])
