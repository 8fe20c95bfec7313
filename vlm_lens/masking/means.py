"""Mean activations, to set masked neurons to instead of zero."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vlm_lens.hooked_root import HookNeverFiredWarning
from vlm_lens.hooks.heads import PATTERN_SITES
from vlm_lens.masking.examples import Batch
from vlm_lens.masking.ownership import NO_SAMPLE, Ownership
from vlm_lens.model import HookedVLM


@torch.no_grad()
def mean_activations(
    model: HookedVLM, batches: Sequence[Batch], names: Sequence[str]
) -> dict[str, Float[Tensor, " d"]]:
    """Each neuron's mean over all positions of all samples that reach it, prompts and answers.

    Every position counts alike, so that long prompts and samples with many images weigh more, as
    they do in `NeuronSet.ablate("mean")`; padding and what only fills a batch up do not count.

    Args:
        model: The model.
        batches: The samples with their answers; how they are batched makes no difference.
        names: Hook points with neurons; those of heads count one after the other.

    Returns:
        By hook name, float32, on the CPU.

    Raises:
        ValueError: A hook point has no neurons, is not reached by any sample, or has a mean that is
            not finite.
        HookNameError: There is no such hook point.

    Example:
        >>> from vlm_lens import HookedVLM, load_samples
        >>> from vlm_lens.masking import make_batches
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> batches = make_batches(model, load_samples("shapes-llava", n=2))
        >>> mean_activations(model, batches, ["projector.hook_out"])["projector.hook_out"].shape
        torch.Size([128])
    """
    names = list(dict.fromkeys(names))
    if weights := [name for name in names if name.endswith(PATTERN_SITES)]:
        raise ValueError(f"expected hook points with neurons, got {weights[0]!r}")
    if not names:
        return {}
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    for batch in batches:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", HookNeverFiredWarning)  # of samples without an image
            with model.hooks([(names, _adding(batch, sums, counts))]):
                model(batch.arguments, return_type=None, use_cache=False)
    if missing := [name for name in names if not counts.get(name)]:
        raise ValueError(
            f"no sample reaches {missing[0]!r} (in all, {len(missing)} hook points), so its "
            "neurons have no mean: add samples with images, or leave these neurons out"
        )
    means = {name: (sums[name] / counts[name]).float() for name in names}
    if broken := [name for name, mean in means.items() if not mean.isfinite().all()]:
        raise ValueError(
            f"neurons at {broken[0]!r} (in all, {len(broken)} hook points) have no finite mean, "
            "because some of their activations are infinite or NaN: run the model in float32 or "
            "bfloat16, or mask with zeros"
        )
    return means


def _adding(
    batch: Batch, sums: dict[str, Tensor], counts: dict[str, int]
) -> Callable[[Tensor, HookPoint], None]:
    """A hook that adds a batch's activations up."""
    ownership = Ownership(batch)

    def add(tensor: Tensor, hook: HookPoint) -> None:
        name = str(hook.name)
        real = ownership.of(name, *tensor.shape[:2]) != NO_SAMPLE
        wide = torch.promote_types(tensor.dtype, torch.float32)
        for row, chosen in zip(tensor.flatten(2), real.to(tensor.device), strict=True):
            total = row[chosen].sum(0, dtype=wide).cpu().double()
            sums[name] = sums[name] + total if name in sums else total
        counts[name] = counts.get(name, 0) + int(real.sum())

    return add
