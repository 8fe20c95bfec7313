"""Samples by group: of a category, to choose neurons from, or to judge them on."""

from __future__ import annotations

from collections.abc import Sequence

from vlm_lens.data.sample import Sample


def category(sample: Sample) -> str:
    """The group of a sample, unless told otherwise.

    Raises:
        ValueError: It has none.
    """
    if sample.category is None:
        raise ValueError(
            f"the sample {sample.text!r} has no category to be grouped by: give all samples one, "
            "or pass by=... that says which group a sample is of"
        )
    return sample.category


def held_out(
    samples: Sequence[Sample], *, share: float
) -> tuple[list[Sample], dict[str, list[Sample]]]:
    """Samples that neurons are chosen from, and others by category that they are judged on.

    Args:
        samples: Samples with categories.
        share: How many of each category are held out: its last ones.

    Raises:
        ValueError: The share is not between 0 and 1, or leaves a group without one of them.

    Example:
        >>> samples = [Sample(images=[], text=str(i), category="ab"[i % 2]) for i in range(8)]
        >>> chosen_from, others = held_out(samples, share=0.25)
        >>> [s.text for s in chosen_from], {group: len(of) for group, of in others.items()}
        (['0', '2', '4', '1', '3', '5'], {'a': 1, 'b': 1})
    """
    if not 0 < share < 1:
        raise ValueError(f"expected a share to judge on between 0 and 1, got {share}")
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(category(sample), []).append(sample)
    cuts = {group: round(len(of) * (1 - share)) for group, of in sorted(groups.items())}
    if few := [group for group, cut in cuts.items() if not 0 < cut < len(groups[group])]:
        raise ValueError(
            f"the group {few[0]!r} has {len(groups[few[0]])} samples, too few to choose neurons "
            "from some and judge them on others"
        )
    chosen_from = [sample for group, cut in cuts.items() for sample in groups[group][:cut]]
    return chosen_from, {group: groups[group][cut:] for group, cut in cuts.items()}
