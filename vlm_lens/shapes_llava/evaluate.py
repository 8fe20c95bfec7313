"""Accuracy of a `shapes` model on held-out scenes: `python -m vlm_lens.shapes_llava.evaluate`.

The model answers by greedy generation, as any Hugging Face model does, from prompts that the
processor's chat template makes. An answer counts when it equals the expected one word for word.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from vlm_lens.data.sample import Sample
from vlm_lens.shapes_llava import WEIGHTS
from vlm_lens.shapes_llava.questions import TASKS
from vlm_lens.shapes_llava.world import CATEGORIES, make_samples
from vlm_lens.whole_file import replace_file

Accuracy = dict[str, dict[str, dict[str, int | float]]]
"""Per task, per question type: "correct", "total" and their ratio "accuracy"."""

LONGEST_ANSWER = 40


def prompt(processor: Any, sample: Sample) -> str:
    """The sample in the chat template, up to where the answer begins."""
    content = [{"type": "image"} for _ in sample.images]
    content.append({"type": "text", "text": sample.text})
    messages = [{"role": "user", "content": content}]
    return processor.apply_chat_template(messages, add_generation_prompt=True)


@torch.inference_mode()
def answer(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    *,
    batch_size: int = 64,
) -> Iterator[str]:
    """Answers samples by greedy generation, in batches.

    Args:
        model: a model in evaluation mode.
        processor: its processor.
        samples: all with images, or all without.
        batch_size: how many samples are generated at once.

    Yields:
        The generated text of each sample, without special tokens.
    """
    for start in range(0, len(samples), batch_size):
        batch = samples[start : start + batch_size]
        images = [image for sample in batch for image in sample.images]
        inputs = processor(
            text=[prompt(processor, sample) for sample in batch],
            images=images or None,
            padding=True,
            return_tensors="pt",
        )
        output = model.generate(**inputs, do_sample=False, max_new_tokens=LONGEST_ANSWER)
        yield from processor.batch_decode(
            output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )


def evaluate(
    model: Any,
    processor: Any,
    *,
    n: int = 500,
    seed: int = 0,
    split: str = "test",
    make: Callable[..., list[Sample]] = make_samples,
) -> Accuracy:
    """Measures the accuracy of every task and question type.

    Args:
        model: a model in evaluation mode.
        processor: its processor.
        n: samples per question type of a task.
        seed: which samples.
        split: which scenes.
        make: makes the samples; by default in the words of `shapes-llava`.

    Returns:
        `{task: {question type: {"correct": ..., "total": ..., "accuracy": ...}}}`.
    """
    result: Accuracy = {}
    for task in TASKS:
        counts: dict[str, list[bool]] = defaultdict(list)
        samples = make(split=split, task=task, n=n * len(CATEGORIES[task]), seed=seed)
        for sample, given in zip(samples, answer(model, processor, samples), strict=True):
            counts[str(sample.category)].append(given.strip() == sample.answer)
        result[task] = {
            category: {
                "correct": sum(hits),
                "total": len(hits),
                "accuracy": round(sum(hits) / len(hits), 4),
            }
            for category, hits in counts.items()
        }
    return result


def table(result: Accuracy) -> str:
    """The accuracies as a Markdown table.

    Example:
        >>> print(table({"image": {"color": {"correct": 9, "total": 10, "accuracy": 0.9}}}))
        | task | question | correct | total | accuracy |
        | --- | --- | ---: | ---: | ---: |
        | image | color | 9 | 10 | 90.0% |
    """
    lines = [
        "| task | question | correct | total | accuracy |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for task, categories in result.items():
        for category, row in categories.items():
            share = f"{100 * row['accuracy']:.1f}%"
            lines.append(f"| {task} | {category} | {row['correct']} | {row['total']} | {share} |")
    return "\n".join(lines)


def main() -> None:
    """Command line: evaluates a model folder, writes the table and, with --out, a JSON file."""
    parser = argparse.ArgumentParser(description="Accuracy of a `shapes` model on held-out scenes.")
    parser.add_argument("--model", type=Path, default=WEIGHTS, help="folder of the model")
    parser.add_argument("--n", type=int, default=500, help="samples per question type")
    parser.add_argument("--seed", type=int, default=0, help="which held-out samples")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the accuracies")
    args = parser.parse_args()
    model = LlavaForConditionalGeneration.from_pretrained(args.model).eval()
    processor = AutoProcessor.from_pretrained(args.model)
    result = evaluate(model, processor, n=args.n, seed=args.seed)
    sys.stdout.write(table(result) + "\n")
    if args.out is not None:
        replace_file(args.out, (json.dumps(result, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
