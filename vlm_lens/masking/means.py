"""Mean activations, to set masked neurons to instead of zero."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from vlm_lens.hooks.heads import PATTERN_SITES
from vlm_lens.model import HookedVLM
from vlm_lens.passes import Batch, Total, sum_of
from vlm_lens.passes.watch import reduced


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
        >>> from vlm_lens.passes.batch import make_batches
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
    total, sums = Total(sum_of), {}
    for batch in batches:
        for (_, name), state in reduced(model, batch, {"sum": total}, names).items():
            sums[name] = total.plus(sums[name], state) if name in sums else state
    if missing := [name for name in names if name not in sums]:
        raise ValueError(
            f"no sample reaches {missing[0]!r} (in all, {len(missing)} hook points), so its "
            "neurons have no mean: add samples with images, or leave these neurons out"
        )
    means = {name: (sums[name]["sum"].cpu() / sums[name]["positions"]).float() for name in names}
    if broken := [name for name, mean in means.items() if not mean.isfinite().all()]:
        raise ValueError(
            f"neurons at {broken[0]!r} (in all, {len(broken)} hook points) have no finite mean, "
            "because some of their activations are infinite or NaN: run the model in float32 or "
            "bfloat16, or mask with zeros"
        )
    return means
