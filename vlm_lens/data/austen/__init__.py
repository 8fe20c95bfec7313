"""Passages from Jane Austen's six novels, which are in the public domain: English text to run on.

Each is a paragraph of 60 to 100 words without direct speech, eleven from each novel: `train.txt`
has those from Emma, Mansfield Park and Northanger Abbey, `test.txt` those from Persuasion, Pride
and Prejudice, and Sense and Sensibility. What is found on one half can be held against the other.
"""

from __future__ import annotations

from importlib.resources import files

from vlm_lens.data.sample import Sample

NAME = "austen"
"""What `load_samples` calls them."""

SPLITS = ("train", "test")


def load_passages(*, split: str = "test", n: int = 200) -> list[Sample]:
    """The passages of one half, in the order of the novels; there are 33.

    Args:
        split: "train" or "test".
        n: How many at most.

    Raises:
        ValueError: There is no such half.

    Example:
        >>> passages = load_passages(split="train")
        >>> len(passages), passages[0].text.split()[:3]
        (33, ['The', 'event', 'was'])
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS} for {NAME!r}, got {split!r}")
    text = (files(__package__ or "") / f"{split}.txt").read_text(encoding="utf-8")
    passages = [" ".join(passage.split()) for passage in text.split("\n\n")]
    return [Sample(images=[], text=passage) for passage in passages[:n]]
