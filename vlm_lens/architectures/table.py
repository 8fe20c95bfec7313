"""What is supported, as the records say it: what ``vlm-lens models`` shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlm_lens.architectures.base import Architecture, ProjectorPaths, StackPaths, config_at
from vlm_lens.architectures.registry import records

COLUMNS = ("class", "encoder", "Q-Former", "projector", "text model", "token layout")
OPEN = "*"
"""Marks a part that may be of another type too: the family's configuration leaves it open."""


def support_rows() -> list[tuple[str, ...]]:
    """One row a record, with the `COLUMNS`; of records that stand for the same, the last one.

    Example:
        >>> support_rows()[0]
        ('LlavaForConditionalGeneration', 'clip_vision_model *', '-', 'MLP', 'llama *', 'fixed')
    """
    used = {
        (record.model_class, record.text_types, record.vision_types): record for record in records()
    }
    return [_row(record) for record in used.values()]


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows as lines of plain text, with their columns under each other.

    Example:
        >>> print(aligned([("class", "layout"), ("LlavaForConditionalGeneration", "fixed")]))
        class                          layout
        LlavaForConditionalGeneration  fixed
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def language_models() -> list[str]:
    """The classes that are language models alone.

    Example:
        >>> language_models()[0]
        'LlamaForCausalLM'
    """
    return list(dict.fromkeys(r.model_class for r in records() if not r.media_parts()))


def towers() -> list[str]:
    """The classes that are vision towers alone.

    Example:
        >>> towers()[0]
        'CLIPVisionModel'
    """
    return list(dict.fromkeys(r.model_class for r in records() if r.language_model is None))


def markdown() -> str:
    """One row a class that reads more than text, in Markdown: its encoder, projector, text models.

    Example:
        >>> print(markdown().splitlines()[5])
        | `Blip2` | `blip_2_vision_model`, Q-Former | linear | `opt`, `t5` |
    """
    merged: dict[str, tuple[list[str], str, list[str]]] = {}
    for name, encoder, qformer, projector, text, _ in support_rows():
        if "-" in (encoder, text):
            continue
        tower = _code(encoder) + ("" if qformer == "-" else ", Q-Former")
        encoders, _, texts = merged.setdefault(name, ([], projector, []))
        encoders.append(tower)
        texts.append(_code(text))
    lines = ["| class | encoder | projector | text model |", "| --- | --- | --- | --- |"]
    for name, (encoders, projector, texts) in merged.items():
        short = name.removesuffix("ForConditionalGeneration")
        tower, text = (", ".join(dict.fromkeys(cells)) for cells in (encoders, texts))
        lines.append(f"| `{short}` | {tower} | {projector} | {text} |")
    return "\n".join(lines)


def _code(cell: str) -> str:
    name, is_open, _ = cell.partition(f" {OPEN}")
    return f"`{name}`{is_open.replace(OPEN, chr(92) + OPEN)}"


def _row(record: Architecture) -> tuple[str, ...]:
    encoder = record.vision_encoder or record.audio_encoder
    text = ", ".join(record.text_types) or _model_type(record, record.language_model)
    layout = "" if record.layout is None else record.layout.__name__.removesuffix("_layout")
    return (
        record.model_class,
        ", ".join(record.vision_types) or _model_type(record, encoder),
        _model_type(record, record.qformer),
        _kind(record.projector),
        text,
        layout or "-",
    )


def _kind(projector: ProjectorPaths | None) -> str:
    if projector is None:
        return "-"
    parts = {
        "norm": projector.norm,
        "attention": projector.attn,
        "MLP": projector.linear_1,
        "deepstack": projector.deepstack,
    }
    named = [name for name, part in parts.items() if part is not None]
    return ", ".join(named if {"MLP", "attention"} & set(named) else [*named, "linear"])


def _model_type(record: Architecture, paths: StackPaths | None) -> str:
    """The type that the class has a part of, by its own configuration."""
    import transformers

    if paths is None:
        return "-"
    model_class: Any = getattr(transformers, record.model_class, None)
    if model_class is None:  # a class of the user's own
        return f"any {OPEN}"
    config = model_class.config_class()
    is_open = config.sub_configs.get(paths.config) is transformers.AutoConfig
    return config_at(config, paths.config).model_type + (f" {OPEN}" if is_open else "")
