"""Culture-sensitive neurons: those that one group of questions needs, and the others do not.

Zhao et al. 2026, "Culture-sensitive neurons in vision-language models" (arXiv 2510.24942), who ask
questions about 25 cultures; any other groups do as well, such as categories of questions. A neuron
is what the activation function of a text decoder's MLP gives (``mlp.hook_act``). Over the tokens of
each group ``c``, let ``P_c`` be how often it is active and ``m_c`` its mean. The selectors:

    LAP     P_c
    LAPE    the entropy of P_c / sum of P over groups: the lower, the more specific
            (Tang et al. 2024, arXiv 2402.16438)
    MAD     m_c minus the mean of m over the other groups
    ConAct  the best group's P minus the runner-up's, credited to the best group alone

The paper was read in abstracts, its selectors in later papers of the same author; MAD's formula is
in none of them, and which tokens count is not said: both are ours. Whether neurons are a group's,
`vlm_lens.experiments.matrix` tells: each set masked, each group asked, beside random neurons.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlm_lens.data import Sample
from vlm_lens.data.sample import check_are_samples
from vlm_lens.experiments import CLEAN, measure
from vlm_lens.hooks.names import NamesFilter
from vlm_lens.model import HookedVLM
from vlm_lens.neurons import NeuronSet
from vlm_lens.neurons.sites import Which
from vlm_lens.parts import text_for
from vlm_lens.passes import Reading, Run, Total, one_pass, sum_of
from vlm_lens.passes.data import ONE
from vlm_lens.passes.run import OnBatch
from vlm_lens.results import provenance
from vlm_lens.results.scores import Scores

Selector = Literal["LAP", "LAPE", "MAD", "ConAct"]
PerGroup = Float[Tensor, "group d"]

_ACTIVE_BAR = 0.95
"""LAPE's authors': a neuron is active in a group above this quantile of all neurons' rates."""


# What is measured ---------------------------------------------------------------------------------


def active(reading: Reading, sample: int, rows: Int[Tensor, " n"]) -> Float[Tensor, " d"]:  # noqa: ARG001
    """At how many of a sample's tokens each neuron is active."""
    return (reading.rows(rows) > 0).float().sum(0)


def right_ones(model: HookedVLM, samples: Sequence[Sample], *, batch_size: int) -> list[Sample]:
    """The samples that the model answers right."""
    grades = measure(model, {"all": samples}, {}, batch_size=batch_size).of[CLEAN]["all"]
    answered = [sample for sample in samples if (sample.answer or "").strip()]
    return [sample for sample, grade in zip(answered, grades.tolist(), strict=True) if grade == 1]


# The selectors ------------------------------------------------------------------------------------


def lape(rates: PerGroup, *, bar: float) -> PerGroup:
    """Minus the entropy of a neuron's rates over groups, for each group that it is active in.

    Args:
        rates: Of the neurons of a hook point.
        bar: Above this rate a neuron is active in a group.

    Example:
        >>> found = lape(torch.tensor([[0.8, 0.4], [0.0, 0.6]]), bar=0.5)
        >>> found[0, 0].item() == 0, round(found[1, 1].item(), 3)  # 0 is as specific as can be
        (True, -0.673)
    """
    shares = rates / rates.sum(0).clamp(min=1e-12)
    entropy = -torch.special.xlogy(shares, shares).sum(0)
    return torch.where(rates > bar, -entropy, torch.nan)


def mad(means: PerGroup) -> PerGroup:
    """Each group's mean activation minus the mean of the other groups'.

    Example:
        >>> mad(torch.tensor([[1.0], [0.0], [0.5]])).flatten().tolist()
        [0.75, -0.75, 0.0]
    """
    others = (means.sum(0) - means) / (len(means) - 1)
    return means - others


def con_act(rates: PerGroup) -> PerGroup:
    """The margin of the group in which a neuron is most often active; 0 for the other groups.

    Example:
        >>> con_act(torch.tensor([[0.75], [0.0], [0.5]])).flatten().tolist()
        [0.25, 0.0, 0.0]
    """
    (best, runner_up), place = rates.topk(2, dim=0).values, rates.argmax(0)
    is_best = torch.arange(len(rates))[:, None] == place
    return torch.where(is_best, best - runner_up, 0.0)


def compared(means: Scores) -> Scores:
    """What a selector makes of each group's means; the method says which selector.

    Raises:
        ValueError: It is unknown.
    """
    match means.method:
        case "LAP":
            return means
        case "LAPE":
            rates = torch.cat([values.flatten() for values in means.values()]).double()
            bar = float(np.quantile(rates.numpy(), _ACTIVE_BAR))
            return means.map(partial(lape, bar=bar))
        case "MAD":
            return means.map(mad)
        case "ConAct":
            return means.map(con_act)
    raise ValueError(f"expected a selector of {list(get_args(Selector))}, got {means.method!r}")


# All samples --------------------------------------------------------------------------------------


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


@torch.no_grad()
def score(
    model: HookedVLM,
    samples: Sequence[Sample],
    *,
    selector: Selector = "ConAct",
    by: Callable[[Sample], str] = category,
    over: str = "text prompt",
    only_right: bool = True,
    sites: Which | NamesFilter = "act",
    batch_size: int = 16,
    checkpoint: Path | None = None,
    on_batch: OnBatch | None = None,
) -> Scores:
    """How much each neuron is each group's.

    Args:
        model: A model with a language model.
        samples: Questions of at least two groups.
        selector: How activations are compared; see the module.
        by: Says which group a sample is of; by default its category.
        over: Which tokens count; ours: the words of the prompt, and no patches of an image.
        only_right: Whether only questions count that the model answers right; they need answers.
        sites: Hook points of the language model.
        batch_size: How many samples run at once.
        checkpoint: A folder for what is done so far; the same call goes on from there.
        on_batch: Called after each batch with the number of batches done and of all.

    Returns:
        Scores with the axis "group"; NaN where LAPE drops a neuron.

    Raises:
        ValueError: The selector is unknown, a sample has no category, there are fewer than two
            groups, or no question is answered right.

    Example:
        >>> from vlm_lens import load_samples
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> scores = score(model, load_samples("shapes-llava", n=24))
        >>> scores
        Scores(ConAct by group: 2304 neurons at 6 hook points)
        >>> len(select(scores)["color"])
        12
    """
    if selector not in get_args(Selector):
        raise ValueError(f"expected a selector of {list(get_args(Selector))}, got {selector!r}")
    text_for(model, "groups of questions")
    check_are_samples(samples)
    asked = right_ones(model, samples, batch_size=batch_size) if only_right else samples
    groups = sorted({by(sample) for sample in asked})
    if len(groups) < 2:
        right = " that are answered right" * only_right
        raise ValueError(f"expected questions of at least two groups{right}, got {groups}")
    parameters = {"selector": selector, "over": over, "only_right": only_right}
    passed = one_pass(
        model,
        asked,
        {"statistic": Total(sum_of if selector == "MAD" else active, over=over)},
        sites=sites,
        component="language_model",
        by=by,
        about=parameters,
        run=Run(batch_size=batch_size, folder=checkpoint, kind="progress", on_batch=on_batch),
    )
    means = passed.means("statistic", per="positions", groups=groups, method=selector)
    return replace(
        compared(means),
        parameters={
            **parameters,
            "n_samples": dict(sorted(passed.n_samples.items())),
            "left_out": [*passed.left_out.get(ONE, {}).values()],
            "provenance": provenance(model),
        },
    )


def select(scores: Scores, *, share: int | float = 0.005) -> dict[str, NeuronSet]:
    """The neurons of each group, best first.

    Of LAPE, the neurons with the lowest entropy, each for every group that it is active in; of the
    others each group's best ones.

    Args:
        scores: Of `score`.
        share: How many, as a share of all neurons; the later papers' 0.5%.

    Raises:
        ValueError: The share is not above 0 and at most 1, or selects no neuron.
    """
    if not 0 < share <= 1 or not (k := round(share * sum(scores.sizes.values()))):
        raise ValueError(f"expected a share above 0 and at most 1 that selects some, got {share}")
    if scores.method != "LAPE":
        return scores.each("group", k=k)
    lowest = {name: values.nan_to_num(nan=-torch.inf).amax(0) for name, values in scores.items()}
    kept = {name: values.where(values.isfinite(), torch.nan) for name, values in lowest.items()}
    n_kept = sum(int(values.isfinite().sum()) for values in kept.values())
    best = Scores(kept, scores.method).top(min(k, n_kept))
    return {
        group: NeuronSet(
            (n for n in best if not scores[n.name][place, n.index].isnan()), sizes=scores.sizes
        )
        for place, group in enumerate(scores.axes["group"])
    }
