"""What statistics of every neuron cost, against Hugging Face's bare forward over the same batches.

Batches are prepared beforehand (tokens, pixels and, with ``--answers own``, the model's own answers
behind the prompts), and the same tensors go to all contenders: to the Hugging Face model itself,
which computes all logits and keeps nothing, and to `vlm_lens.statistics`, which wraps that very
model. So what is measured is what reducing activations in hooks costs; preparing images and
generating answers takes as long with and without it, and is not in any number here.

`vlm_lens` asks for the last position's logits only, which nobody reads; "bare, one logit" is
Hugging Face's forward with the same saving, for a comparison of like with like.

A round runs every contender over all batches once, in random order; a ratio is to Hugging Face's
time in the same round, and the table shows medians and quartiles of these ratios. Statistics go on
from round to round, as in a long data set: the top samples are full after the first rounds.

    python benchmarks/statistics.py
    python benchmarks/statistics.py --model shapes-llava --rounds 60
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: the folder above is the one to import from
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers, processors  # noqa: E402
from transformers import (  # noqa: E402
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil  # noqa: E402
from transformers.utils import logging as transformers_logging  # noqa: E402

from benchmarks.measure import WARM_UPS, keep_heap, seconds, summary  # noqa: E402
from benchmarks.models import IMAGE_TOKEN, SIZES, llava_config  # noqa: E402
from benchmarks.surroundings import surroundings  # noqa: E402
from vlm_lens import HookedVLM, Sample, load_samples  # noqa: E402
from vlm_lens.inputs.token_types import MODALITIES, TokenType, parse_types  # noqa: E402
from vlm_lens.neurons.sites import sites  # noqa: E402
from vlm_lens.passes import Answers, Batch, Passed, make_batch, merge  # noqa: E402
from vlm_lens.passes.data import ONE  # noqa: E402
from vlm_lens.passes.watch import reduced  # noqa: E402
from vlm_lens.statistics.collect import reducers_of, sites_of  # noqa: E402
from vlm_lens.statistics.site_statistics import SiteStatistics  # noqa: E402

BARE, ONE_LOGIT = "bare forward", "bare forward, one logit"
MARKS = ("<!-- statistics -->", "<!-- /statistics -->")
TARGET = 1.20
"""At most so many times the bare forward, for the language model's neurons."""

_LM = "language model"
CONTENDERS: dict[str, dict[str, Any]] = {
    f"{_LM}, no top samples": {"component": "language_model", "top_k": 0},
    f"{_LM}, top 50": {"component": "language_model"},
    "all components, top 50": {"component": None},
    f"{_LM}, top 50, attention": {"component": "language_model", "attention": True},
}
_HELD_TO_TARGET = f"{_LM}, top 50"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", action="append", choices=[*MODELS], help="may be repeated")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--answers", choices=["own", "none"], default="none")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("statistics.json"))
    options = parser.parse_args(arguments)
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(1)
    keep_heap()
    how = {name: getattr(options, name) for name in ("rounds", "batches", "batch_size", "answers")}
    found = {name: measure_model(name, **how) for name in options.model or MODELS}
    results = {**surroundings(), **how, "clock": "cpu", "heap": "kept", "models": found}
    options.out.write_text(json.dumps(results, indent=2) + "\n")
    print(table(results))


def shapes_llava(n: int) -> tuple[HookedVLM, list[Sample]]:
    """The bundled model, with questions about images, descriptions and texts in turn."""
    tasks = [load_samples("shapes-llava", task=task, n=n) for task in ("image", "caption", "text")]
    mixed = [sample for together in zip(*tasks, strict=True) for sample in together]
    return HookedVLM.from_pretrained("shapes-llava"), mixed[:n]


def random_llava(n: int) -> tuple[HookedVLM, list[Sample]]:
    """The 39M model: noise, and texts of 8 to 32 words; every eighth sample has no image."""
    size = SIZES["39m"]
    torch.manual_seed(0)
    hf_model = LlavaForConditionalGeneration(llava_config(size)).eval()
    generator = np.random.default_rng(0)

    def sample(number: int) -> Sample:
        pixels = generator.integers(0, 256, (size.image, size.image, 3), dtype=np.uint8)
        words = generator.integers(IMAGE_TOKEN + 1, size.vocabulary, generator.integers(8, 33))
        images = [Image.fromarray(pixels)] if number % 8 != 7 else []
        return Sample(images=images, text=" ".join(f"w{word}" for word in words))

    model = HookedVLM(hf_model, processor=_processor(size.vocabulary, size.image, size.patch))
    return model, [sample(number) for number in range(n)]


def _processor(vocabulary: int, image: int, patch: int) -> LlavaProcessor:
    special = ["<pad>", "<bos>", "<eos>", "<unk>", "<image>"]
    words = [*special, *(f"w{word}" for word in range(len(special), vocabulary))]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": image}, crop_size={"height": image, "width": image}
        ),
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="<pad>",
            bos_token="<bos>",
            eos_token="<eos>",
            unk_token="<unk>",
            model_specific_special_tokens={"image_token": "<image>"},
        ),
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


MODELS: dict[str, Callable[[int], tuple[HookedVLM, list[Sample]]]] = {
    "39m": random_llava,
    "shapes-llava": shapes_llava,
}


class Statistics:
    """Statistics that go on from run to run."""

    def __init__(
        self,
        model: HookedVLM,
        batches: list[Batch],
        *,
        component: str | None,
        top_k: int = 50,
        attention: bool = False,
    ) -> None:
        self.model, self.batches, self.top_k = model, batches, top_k
        self.names, self.types = sites(model, "act", component=component), parse_types(MODALITIES)
        ranked = TokenType.union(self.types)
        self.reducers = reducers_of(
            self.types, ranked, top_k=top_k, active_above=0.0, attention=attention
        )
        self.passed = Passed()

    def __call__(self) -> None:
        for batch in self.batches:
            n = self.passed.n_samples.get(ONE, 0)
            numbers = [n + i for i in range(len(batch))]
            found = reduced(self.model, replace(batch, numbers=numbers), self.reducers, self.names)
            assert all(self.reducers[name].is_finite(found[name, site]) for name, site in found)
            states = {(ONE, *key): state for key, state in found.items()}
            more = Passed(states, {ONE: len(batch)})
            self.passed = merge([self.passed, more], self.reducers)

    @property
    def sites(self) -> dict[str, SiteStatistics]:
        """What is known of each hook point."""
        return sites_of(self.passed, self.names, self.types, self.top_k)


@torch.no_grad()
def measure_model(
    name: str, *, rounds: int, batches: int, batch_size: int, answers: str
) -> dict[str, Any]:
    """Everything that is reported of one model."""
    model, samples = MODELS[name](batches * batch_size)
    prepared = [
        make_batch(
            model,
            samples[i : i + batch_size],
            Answers("own") if answers == "own" else Answers(),
            numbers=[*range(i, i + batch_size)],
        )
        for i in range(0, len(samples), batch_size)
    ]
    hf_model: Any = model.hf_model

    def bare(**options: Any) -> None:
        for batch in prepared:
            hf_model(**batch.arguments, use_cache=False, **options)

    runs: dict[str, Callable[[], None]] = {BARE: bare, ONE_LOGIT: lambda: bare(logits_to_keep=1)}
    runs |= {who: Statistics(model, prepared, **how) for who, how in CONTENDERS.items()}
    times = _times(runs, rounds=rounds)
    shapes = [list(batch.real.shape) for batch in prepared]
    return {
        "parameters": sum(parameter.numel() for parameter in hf_model.parameters()),
        "batches": shapes,
        "images": sum(len(sample.images) for sample in samples),
        "contenders": {who: summary(taken, times[BARE]) for who, taken in times.items()},
    }


def _times(runs: dict[str, Callable[[], None]], *, rounds: int) -> dict[str, list[float]]:
    """Seconds of every round, each contender once a round in random order."""
    for run in [*runs.values()] * WARM_UPS:
        run()
    times: dict[str, list[float]] = {who: [] for who in runs}
    order, jobs = random.Random(0), list(runs.items())
    for _ in range(rounds):
        order.shuffle(jobs)
        gc.collect()
        gc.disable()
        for who, run in jobs:
            times[who].append(seconds(run, clock="cpu"))
        gc.enable()
    return times


def table(results: dict[str, Any]) -> str:
    """A row for each contender and model."""
    lines = [
        "| model | what runs | ms | times the bare forward | goal |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for name, model in results["models"].items():
        for who, cell in model["contenders"].items():
            low, high = cell["quartiles"]
            reached = "yes" if cell["ratio"] <= TARGET else "NO"
            goal = f"≤ {TARGET:.2f}: {reached}" if who == _HELD_TO_TARGET else ""
            ratio = f"{cell['ratio']:.3f} [{low:.3f}, {high:.3f}]"
            lines.append(f"| {name} | {who} | {cell['ms']:.1f} | {ratio} | {goal} |")
    return "\n".join([*lines, "", caption(results)])


def readme_table(results: dict[str, Any]) -> str:
    """The same in short, between `MARKS`: ratios, a column for each contender."""
    shown = [ONE_LOGIT, *CONTENDERS]
    heads = [who.removeprefix(f"{BARE}, ") for who in shown]
    heads[shown.index(_HELD_TO_TARGET)] += f" (goal: ≤ {TARGET:.2f}x)"
    lines = [["times the bare forward", *heads], ["---", *["---:"] * len(shown)]]
    for name, model in results["models"].items():
        cells = [f"{model['contenders'][who]['ratio']:.2f}x" for who in shown]
        lines.append([f"{name} ({model['parameters'] / 1e6:.1f}M)", *cells])
    table_lines = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([*table_lines, "", caption(results).replace(" with quartiles", "")])


def caption(results: dict[str, Any]) -> str:
    """What was measured, and on what."""
    batches = [
        f"`{name}`: {' and '.join(f'{n} samples x {pos}' for n, pos in model['batches'])}, "
        f"{model['images']} with images"
        for name, model in results["models"].items()
    ]
    return (
        f"Batches (by positions) of {'; '.join(batches)}. Answers: {results['answers']}. "
        f"Medians of {results['rounds']} interleaved rounds with quartiles, processor time, "
        f"{results['threads']} thread, heap kept, {results['cpu']}, load average "
        f"{results['load_average']:.1f}, {results['date']}. Preparing samples is in no number."
    )


if __name__ == "__main__":
    main()
