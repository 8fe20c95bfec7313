"""What a model answers as more and more neurons are masked, beside what it answers without."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from vlm_lens.plots import style
from vlm_lens.plots.html_figure import HtmlFigure

if TYPE_CHECKING:
    from vlm_lens.analyses.critical import CriticalNeurons, Measurement

_MOST_COLUMNS = 8
_CELL = (
    "padding:5px 9px;text-align:left;vertical-align:top;white-space:pre-wrap;"
    "overflow-wrap:anywhere;min-width:6em;max-width:22em;"
    "border:1px solid rgba(128,128,128,.35);background:"
)
_MUTED = "opacity:.72"


@dataclass(frozen=True, repr=False)
class TextGallery(HtmlFigure):
    """Answers as an HTML table, which notebooks show and any page can hold."""


def text_gallery(
    result: CriticalNeurons, *, n: int = 8, ks: Sequence[int] | None = None
) -> TextGallery:
    """Shows clean and masked answers side by side; those that are not the clean one stand out.

    Args:
        result: What a search for critical neurons found, with answers in some measurements.
        n: How many samples to show, from the first on.
        ks: Which numbers of masked neurons to show. By default all with answers; of more than
            eight those that tell most: where the stages begin, before that, and some between.

    Raises:
        ValueError: `n` is not positive, no measurement has answers, or one of `ks` has none.

    Example:
        >>> from vlm_lens.analyses.critical import CriticalNeurons, Measurement, Stages
        >>> from vlm_lens.neurons import NeuronSet
        >>> result = CriticalNeurons(
        ...     method="CAN", k=1, is_monotone=True, stages=Stages(None, 1, ""),
        ...     ranking=NeuronSet.from_indices({"blocks.1.hook_mlp_out": [5]}),
        ...     curve=(Measurement(0, {}, False, ("a dog",)), Measurement(1, {}, True, ("<s>",))),
        ...     prompts=("what is this ?",), references=("a dog",))
        >>> "≠ &lt;s&gt;" in text_gallery(result).html
        True
    """
    shown = _columns(result, n, ks)
    has_references = any(reference is not None for reference in result.references[:n])
    head = ["prompt", *(["reference answer"] if has_references else [])]
    heads = [f'<th style="{_CELL}none">{text}</th>' for text in head]
    heads += [f'<th style="{_CELL}none">{_head(result, m)}</th>' for m in shown]
    rows = [_row(result, i, shown, has_references) for i in range(min(n, len(result.prompts)))]
    table = (
        '<table style="border-collapse:collapse;font-size:.88em">'
        f"<thead><tr>{''.join(heads)}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )
    return TextGallery(
        f'<div style="font-family:{escape(style.FONT)}">'
        f"<div><b>{escape(result.summary())}</b></div>"
        f'<div style="{_MUTED};margin:.3em 0">{_note(result, n, shown)}</div>'
        f'<div style="overflow-x:auto">{table}</div></div>'
    )


def _columns(result: CriticalNeurons, n: int, ks: Sequence[int] | None) -> list[Measurement]:
    answered = {m.k: m for m in result.curve if m.answers is not None}
    if n < 1:
        raise ValueError(f"expected n of at least 1, got {n}.")
    if not answered:
        raise ValueError(
            "expected measurements with answers, got none: the search was given text to score "
            "but nothing to generate from."
        )
    if ks is None:
        ks = list(answered) if len(answered) <= _MOST_COLUMNS else _telling(result, list(answered))
    if missing := [k for k in ks if k not in answered]:
        raise ValueError(
            f"there are no answers for k = {missing[0]}, but for {', '.join(map(str, answered))}."
        )
    return [answered[k] for k in sorted(set(ks))]


def _telling(result: CriticalNeurons, ks: list[int]) -> list[int]:
    """The clean one, the last one, those where the stages begin and before, and some between."""
    begins = [result.stages.onset, result.k, result.stages.collapse]
    before = [max((k for k in ks if k < begin), default=0) for begin in begins if begin]
    chosen = {ks[0], ks[-1], *before, *(k for k in begins if k in ks)}
    while len(chosen) < _MOST_COLUMNS:
        chosen.add(max(ks, key=lambda k: min(abs(math.log((k + 1) / (c + 1))) for c in chosen)))
    return sorted(chosen)


def _head(result: CriticalNeurons, measurement: Measurement) -> str:
    said = {0: "clean"}
    said |= {result.stages.onset: "degradation begins"} if result.stages.onset else {}
    said |= {result.stages.collapse: "collapse"} if result.stages.collapse else {}
    note = said.get(measurement.k, "")
    return f'k = {measurement.k:,}<div style="font-weight:400">{note}</div>'


def _row(
    result: CriticalNeurons, sample: int, shown: Sequence[Measurement], has_references: bool
) -> str:
    clean = result.curve[0].answers
    cells = [_cell(result.prompts[sample], look=_MUTED)]
    if has_references:
        reference = result.references[sample]
        cells.append(_cell("–" if reference is None else reference or "∅", look=_MUTED))
    for measurement in shown:
        assert measurement.answers is not None  # see _columns
        answer = measurement.answers[sample]
        is_changed = clean is not None and answer != clean[sample]
        cells.append(_cell(answer or "∅", is_changed=is_changed))
    return f"<tr>{''.join(cells)}</tr>"


def _cell(text: str, *, is_changed: bool = False, look: str = "") -> str:
    """A cell; a changed answer has a sign as well as a colour."""
    colour = style.css(style.POSITIVE, 0.22) if is_changed else "none"
    sign = "≠ " if is_changed else ""
    return f'<td style="{_CELL}{colour};{look}">{sign}{escape(text)}</td>'


def _note(result: CriticalNeurons, n: int, shown: Sequence[Measurement]) -> str:
    total, answered = len(result.prompts), sum(m.answers is not None for m in result.curve)
    parts = ["≠ and orange: not the clean answer; ∅: an empty answer"]
    if n < total:
        parts.append(f"the first {n} of {total} samples")
    if len(shown) < answered:
        parts.append(f"{len(shown)} of the {answered} measurements with answers")
    return "; ".join(parts)
