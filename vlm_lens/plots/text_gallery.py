"""What a model answers as more and more neurons are masked, beside what it answers without."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from vlm_lens.masking.measurement import Measurement, Stages
from vlm_lens.plots import style
from vlm_lens.plots.html_figure import HtmlFigure

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


@dataclass(frozen=True)
class _Column:
    """The answers with some neurons masked."""

    k: int
    head: str
    answers: Sequence[str]


def text_gallery(
    measurements: Sequence[Measurement],
    *,
    prompts: Sequence[str],
    references: Sequence[str | None],
    stages: Stages,
    title: str,
    n: int = 8,
    ks: Sequence[int] | None = None,
) -> TextGallery:
    """Shows clean and masked answers side by side; those that are not the clean one stand out.

    Args:
        measurements: By rising number of masked neurons, with answers in some.
        prompts: What was asked.
        references: The answer of each prompt's sample, where it has one.
        stages: Where degradation and collapse begin.
        title: The heading.
        n: How many samples to show, from the first on.
        ks: Which numbers of masked neurons to show. By default all with answers; of more than
            eight those that tell most: where the stages begin, before that, and some between.

    Raises:
        ValueError: `n` is not positive, no measurement has answers, or one of `ks` has none.

    Example:
        >>> from vlm_lens.masking.measurement import Measurement, Stages
        >>> answers = Measurement(0, {}, False, ("a dog",)), Measurement(1, {}, True, ("<s>",))
        >>> gallery = text_gallery(
        ...     answers, prompts=["what is this ?"], references=["a dog"],
        ...     stages=Stages(None, 1, ""), title="CAN")
        >>> "≠ &lt;s&gt;" in gallery.html
        True
    """
    answered = {m.k: m.answers for m in measurements if m.answers is not None}
    columns = [
        _Column(k, _head(k, stages), answered[k]) for k in _chosen(list(answered), n, ks, stages)
    ]
    has_references = any(reference is not None for reference in references[:n])
    heads = ["prompt", *(["reference answer"] if has_references else [])]
    heads += [column.head for column in columns]
    rows = []
    for i, (prompt, reference) in enumerate(zip(prompts[:n], references, strict=False)):
        asked = [prompt]
        if has_references:
            asked.append("–" if reference is None else reference or "∅")
        clean = None if measurements[0].answers is None else measurements[0].answers[i]
        rows.append(_row(asked, [column.answers[i] for column in columns], clean))
    head = "".join(f'<th style="{_CELL}none">{text}</th>' for text in heads)
    note = _note((len(rows), len(prompts)), (len(columns), len(answered)))
    return TextGallery(
        f'<div style="font-family:{escape(style.FONT)}"><div><b>{escape(title)}</b></div>'
        f'<div style="{_MUTED};margin:.3em 0">{note}</div><div style="overflow-x:auto">'
        '<table style="border-collapse:collapse;font-size:.88em">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></div>"
    )


def _row(asked: Sequence[str], answers: Sequence[str], clean: str | None) -> str:
    cells = [_cell(text, look=_MUTED) for text in asked]
    cells += [_cell(a or "∅", is_changed=clean is not None and a != clean) for a in answers]
    return f"<tr>{''.join(cells)}</tr>"


def _chosen(answered: list[int], n: int, ks: Sequence[int] | None, stages: Stages) -> list[int]:
    """The numbers of masked neurons to show, checked."""
    if n < 1:
        raise ValueError(f"expected n of at least 1, got {n}.")
    if not answered:
        raise ValueError(
            "expected measurements with answers, got none: the search was given text to score "
            "but nothing to generate from."
        )
    if ks is None:
        return answered if len(answered) <= _MOST_COLUMNS else _telling(answered, stages)
    if missing := [k for k in ks if k not in answered]:
        raise ValueError(
            f"there are no answers for k = {missing[0]}, but for {', '.join(map(str, answered))}."
        )
    return sorted(set(ks))


def _telling(ks: list[int], stages: Stages) -> list[int]:
    """The clean one, the last one, those where the stages begin and before, and some between."""
    begins = [stages.onset, stages.collapse]
    before = [max((k for k in ks if k < begin), default=0) for begin in begins if begin]
    chosen = {ks[0], ks[-1], *before, *(k for k in begins if k in ks)}
    while len(chosen) < _MOST_COLUMNS:
        chosen.add(max(ks, key=lambda k: min(abs(math.log((k + 1) / (c + 1))) for c in chosen)))
    return sorted(chosen)


def _head(k: int, stages: Stages) -> str:
    said = {0: "clean"}
    said |= {stages.onset: "degradation begins"} if stages.onset else {}
    said |= {stages.collapse: "collapse"} if stages.collapse else {}
    return f'k = {k:,}<div style="font-weight:400">{said.get(k, "")}</div>'


def _cell(text: str, *, is_changed: bool = False, look: str = "") -> str:
    """A cell; a changed answer has a sign as well as a colour."""
    colour = style.css(style.POSITIVE, 0.22) if is_changed else "none"
    sign = "≠ " if is_changed else ""
    return f'<td style="{_CELL}{colour};{look}">{sign}{escape(text)}</td>'


def _note(samples: tuple[int, int], columns: tuple[int, int]) -> str:
    """What a reader must know; of both it is said how many are shown, and how many there are."""
    parts = ["≠ and orange: not the clean answer; ∅: an empty answer"]
    if samples[0] < samples[1]:
        parts.append(f"the first {samples[0]} of {samples[1]} samples")
    if columns[0] < columns[1]:
        parts.append(f"{columns[0]} of the {columns[1]} measurements with answers")
    return "; ".join(parts)
