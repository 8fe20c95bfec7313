"""Accuracy of `shapes-smollm2` on held-out scenes: `python -m vlm_lens.shapes_smollm2.evaluate`.

Answers count as in `vlm_lens.shapes_llava.evaluate`: those of greedy generation that equal the
expected one word for word. ``--ceiling`` asks the language model alone, without connector and
adapters, about scenes told in words: which of the possible answers it finds likeliest. What it
cannot tell from words, it will not tell from image tokens.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from vlm_lens.data.sample import Sample
from vlm_lens.shapes_llava.evaluate import Accuracy, evaluate, prompt, table
from vlm_lens.shapes_llava.words import COLORS, DIGITS, NUMBERS, PLACES, SHAPES
from vlm_lens.shapes_smollm2.build import CONNECTOR, build_model, build_processor
from vlm_lens.shapes_smollm2.world import make_samples
from vlm_lens.whole_file import replace_file

CANDIDATES = {
    "color": COLORS,
    "shape": SHAPES,
    "digit": DIGITS,
    "place": PLACES,
    "count": NUMBERS,
    "existence": ("yes", "no"),
    "relation": ("yes", "no"),
}
"""The possible answers to each type of question."""


def ceiling(model: Any, processor: Any, *, n: int = 30, seed: int = 0) -> Accuracy:
    """How often the answer that a model finds likeliest about a told scene is the right one.

    Args:
        model: a model in evaluation mode.
        processor: its processor.
        n: samples per question type.
        seed: which samples.
    """
    right: dict[str, list[bool]] = defaultdict(list)
    samples = make_samples(task="text", n=n * (len(CANDIDATES) + 1), seed=seed)
    for sample in (one for one in samples if one.category in CANDIDATES):
        category = str(sample.category)
        answers = CANDIDATES[category]
        losses = _losses(model, processor, sample, answers)
        right[category].append(answers[losses.index(min(losses))] == sample.answer)
    return {
        "told, frozen": {
            category: {
                "correct": sum(hits),
                "total": len(hits),
                "accuracy": round(sum(hits) / len(hits), 4),
                "chance": round(1 / len(CANDIDATES[category]), 4),
            }
            for category, hits in right.items()
        }
    }


@torch.inference_mode()
def _losses(model: Any, processor: Any, sample: Sample, answers: Sequence[str]) -> list[float]:
    """The summed loss of each possible answer behind the prompt."""
    tokenizer = processor.tokenizer
    asked = tokenizer(prompt(processor, sample), return_tensors="pt").input_ids
    losses = []
    for answer in answers:
        given = tokenizer(f" {answer}", return_tensors="pt").input_ids
        logits = model(input_ids=torch.cat([asked, given], dim=1)).logits[0]
        predicted = logits[asked.shape[1] - 1 : -1]
        losses.append(float(cross_entropy(predicted.float(), given[0], reduction="sum")))
    return losses


def main() -> None:
    """Command line: evaluates the model, writes the table and, with --out, a JSON file."""
    parser = argparse.ArgumentParser(description="Accuracy of `shapes-smollm2`.")
    parser.add_argument("--connector", type=Path, default=CONNECTOR, help="file of the connector")
    parser.add_argument("--n", type=int, default=100, help="samples per question type")
    parser.add_argument("--seed", type=int, default=0, help="which held-out samples")
    parser.add_argument("--split", default="test", help="which scenes (default: %(default)s)")
    parser.add_argument("--ceiling", action="store_true", help="of the language model alone")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the accuracies")
    args = parser.parse_args()
    processor = build_processor()
    if args.ceiling:
        result = ceiling(build_model(None), processor, n=args.n, seed=args.seed)
    else:
        model = build_model(args.connector)
        result = evaluate(
            model, processor, n=args.n, seed=args.seed, split=args.split, make=make_samples
        )
    sys.stdout.write(table(result) + "\n")
    if args.out is not None:
        replace_file(args.out, (json.dumps(result, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
