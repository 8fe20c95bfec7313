"""What hooks cost on every family: the tests' tiny models, widened, against plain Hugging Face."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.checks import check
from benchmarks.contenders import HF, VLM_LENS, Contender, HuggingFace, Run, VlmLens
from benchmarks.measure import hook_cost, measure, summarise
from benchmarks.models import Subject
from benchmarks.tasks import INNER, TASKS
from tests.families import FAMILIES, build, example
from tests.families.base import randomise

ROWS = ("forward", "lm_neurons", "everything")
"""The tasks that every family is measured on."""

FACTOR = 24
"""How many times as wide as the tests' models they are: 768 instead of 32."""

TINY_MS = 20.0
"""A forward shorter than this is mostly Python, in which hooks weigh more than in real models."""

_WIDTHS = {
    *("hidden_size", "intermediate_size", "head_dim", "query_pre_attn_scalar"),
    *("d_model", "d_ff", "d_kv", "embed_dim", "ffn_dim", "encoder_ffn_dim", "projection_dim"),
    *("word_embed_proj_dim", "encoder_hidden_size", "out_hidden_size", "vision_output_dim"),
    "mrope_section",
}
_LANGUAGE = ("blocks.", "encoder.blocks.", "decoder.blocks.")


def available() -> list[str]:
    """The families that can be measured."""
    return list(FAMILIES)


def build_family(name: str, *, factor: int = FACTOR) -> Subject:
    """A model of the family with one picture (or recording) and one prompt, `factor` as wide."""
    tiny, processor = build(name)
    torch.manual_seed(0)
    hf_model = type(tiny)(type(tiny.config).from_dict(widened(tiny.config.to_dict(), factor)))
    randomise(hf_model)
    return Subject(name, hf_model.eval(), example(name, tiny, processor, "image"))


def widened(settings: dict[str, Any], factor: int) -> dict[str, Any]:
    """A configuration whose widths are multiplied, heads included; counts of anything stay.

    Example:
        >>> widened({"hidden_size": 32, "num_hidden_layers": 3, "vision": {"head_dim": 8}}, 2)
        {'hidden_size': 64, 'num_hidden_layers': 3, 'vision': {'head_dim': 16}}
    """
    return {name: _wider(name, value, factor) for name, value in settings.items()}


def _wider(name: str, value: Any, factor: int) -> Any:
    if isinstance(value, dict):
        return widened(value, factor)
    if name not in _WIDTHS or value is None:
        return value
    return [entry * factor for entry in value] if isinstance(value, list) else value * factor


class FamilyForward(HuggingFace):
    """The model itself; of a family only the forward is measured."""

    @property
    def runs(self) -> dict[str, Run]:
        return {"forward": self.forward}


class FamilyLens(VlmLens):
    """HookedVLM; an encoder-decoder's neurons are those of both."""

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject, n_new=0)
        self.language = [name for name in self.neurons if name.startswith(_LANGUAGE)]
        self.n_kept["lm_neurons"] = len(self.language)

    @property
    def runs(self) -> dict[str, Run]:
        return {task: getattr(self, task) for task in ROWS}

    def lm_neurons(self) -> tuple[Tensor, Any]:
        return self.model.run_with_cache(self.inputs, names_filter=self.language)


def measure_family(name: str, *, rounds: int, clock: str, factor: int = FACTOR) -> dict[str, Any]:
    """Everything that is reported of one family: its size, the check of its logits, the times."""
    subject = build_family(name, factor=factor)
    others = dict.fromkeys(TASKS.keys() - set(ROWS), "is not measured on every family")
    hf, lens = FamilyForward(subject, 0), FamilyLens(subject)
    hf.cannot |= others
    lens.cannot |= others
    contenders: dict[str, Contender] = {HF: hf, VLM_LENS: lens}
    difference = check(contenders)
    times = measure(contenders, rounds=rounds, clock=clock)
    tasks = summarise(times, contenders)
    n_kept = {task: count for task, count in lens.n_kept.items() if task in ROWS}
    return {
        "class": type(subject.hf_model).__name__,
        "parameters": subject.n_parameters,
        "positions": subject.inputs["input_ids"].shape[1],
        "hook_points": sum(not point.endswith(INNER) for point in lens.model.hook_dict),
        "tasks": {task: tasks[task] for task in ROWS},
        "logits_differ_by": difference[VLM_LENS],
        "microseconds_per_hook_point": hook_cost(times, n_kept),
    }


def families_table(families: dict[str, dict[str, Any]]) -> str:
    """A row for each family: the time of a plain forward, and HookedVLM's ratios to it."""
    lines = [
        f"| family | parameters | {HF} | {' | '.join(_heading(task) for task in ROWS)} |",
        "| --- |" + " ---: |" * (2 + len(ROWS)),
    ]
    for name, family in families.items():
        plain = family["tasks"]["forward"][HF]["ms"]
        ratios = [f"{family['tasks'][task][VLM_LENS]['ratio']:.2f}x" for task in ROWS]
        ratios[-1] += f" ({family['hook_points']} points)"
        cells = [f"{family['parameters'] / 1e6:.0f}M", f"{plain:.1f} ms{_tiny(plain)}", *ratios]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    exact = all(not any(family["logits_differ_by"].values()) for family in families.values())
    tiny = any(_tiny(family["tasks"]["forward"][HF]["ms"]) for family in families.values())
    notes = [f"Logits bit-identical to {HF}'s in every cell: {'yes' if exact else 'NO'}."]
    if tiny:
        notes.append(f"(tiny): under {TINY_MS:.0f} ms, where the time is mostly Python's.")
    return "\n".join([*lines, "", *notes])


def _heading(task: str) -> str:
    return TASKS[task].what.removeprefix("forward, ")


def _tiny(milliseconds: float) -> str:
    return " (tiny)" if milliseconds < TINY_MS else ""
