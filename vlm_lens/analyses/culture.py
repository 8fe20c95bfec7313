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
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlm_lens.data import Sample
from vlm_lens.data.groups import category, held_out
from vlm_lens.data.sample import check_are_samples
from vlm_lens.experiments import Selected, measure
from vlm_lens.hooks.names import NamesFilter
from vlm_lens.model import HookedVLM
from vlm_lens.neurons import NeuronSet
from vlm_lens.neurons.sites import Which
from vlm_lens.parts import text_for
from vlm_lens.passes import Reading, Run, Total, one_pass, sum_of
from vlm_lens.results import provenance
from vlm_lens.results.scores import Scores
from vlm_lens.studies import study

Selector = Literal["LAP", "LAPE", "MAD", "ConAct"]
PerGroup = Float[Tensor, "group d"]

_ACTIVE_BAR = 0.95
"""LAPE's authors': a neuron is active in a group above this quantile of all neurons' rates."""


# What is measured ---------------------------------------------------------------------------------


def active(reading: Reading, sample: int, rows: Int[Tensor, " n"]) -> Float[Tensor, " d"]:  # noqa: ARG001
    """At how many of a sample's tokens each neuron is active."""
    return (reading.rows(rows) > 0).float().sum(0)


# The selectors ------------------------------------------------------------------------------------


def lape(rates: PerGroup, *, bar: float) -> PerGroup:
    """Minus the entropy of a neuron's rates over groups, where its rate is above a bar, else NaN.

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
    return means - (means.sum(0) - means) / (len(means) - 1)


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
    run: Run = Run(),  # noqa: B008
) -> Scores:
    """How much each neuron is each group's.

    Args:
        model: A model with a language model.
        samples: Questions of at least two groups.
        selector: See the module.
        by: Says which group a sample is of; by default its category.
        over: Which tokens count; ours: the words of the prompt, and no patches of an image.
        only_right: Whether only questions count that the model answers right; they need answers.
        sites: Hook points of the language model.
        run: How it is done; in its folder the same call goes on.

    Returns:
        Scores with the axis "group"; NaN where LAPE drops a neuron.

    Raises:
        ValueError: The selector is unknown, a sample has no category, or there are fewer than two
            groups (of questions that are answered right).

    Example:
        >>> from vlm_lens import load_samples
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> scores = score(model, load_samples("shapes-llava", n=24))
        >>> scores
        Scores(ConAct by group: 2304 neurons at 6 hook points)
    """
    if selector not in get_args(Selector):
        raise ValueError(f"expected a selector of {list(get_args(Selector))}, got {selector!r}")
    text_for(model, "groups of questions")
    check_are_samples(samples)
    asked, notes = samples, ()
    if only_right:
        grades = measure(model, {"questions": samples}, {}, batch_size=run.batch_size)
        asked, notes = grades.right("questions"), grades.notes
    if len(groups := sorted({by(sample) for sample in asked})) < 2:
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
        run=run,
    )
    means = passed.means("statistic", per="positions", groups=groups, method=selector)
    known = {**means.parameters, **parameters, "provenance": provenance(model)}
    return replace(compared(means), parameters=known, notes=(*notes, *means.notes))


def select(scores: Scores, *, share: int | float = 0.005) -> dict[str, NeuronSet]:
    """The neurons of each group, best first.

    Of LAPE, the neurons with the lowest entropy, each for every group that it is active in; of the
    others each group's best ones.

    Args:
        scores: Of `score`.
        share: How many, as a share of all neurons (above 0); the later papers' 0.5%.
    """
    if not 0 < share <= 1 or not (k := round(share * sum(scores.sizes.values()))):
        raise ValueError(f"expected a share above 0 and at most 1 that selects some, got {share}")
    if scores.method != "LAPE":
        return scores.each("group", k=k)
    of_any = {name: values.nan_to_num(nan=-torch.inf).amax(0) for name, values in scores.items()}
    n_kept = sum(int(values.isfinite().sum()) for values in of_any.values())
    best = Scores(of_any, scores.method).top(min(k, n_kept))
    return {
        group: NeuronSet((n for n in best if of[n.name][n.index].isfinite()), sizes=scores.sizes)
        for group in scores.axes["group"]
        for of in [scores.of(group=group)]
    }


# The study ----------------------------------------------------------------------------------------


@study(
    "culture",
    title="Culture-sensitive neurons",
    paper="arXiv 2510.24942",
    n=420,
    needs=("answers", "categories"),
)
def culture(
    model: HookedVLM,
    samples: Sequence[Sample],
    *,
    selector: Selector = "ConAct",
    share: float = 0.005,
    judged: float = 0.33,
    fill: Literal["zero", "min"] = "zero",
    seeds: Sequence[int] = (0, 1, 2),
    controls: bool = True,
    run: Run = Run(),  # noqa: B008
) -> Selected:
    """The neurons that one group of questions needs, and the others do not.

    Args:
        model: A model with a language model.
        samples: Questions with answers and categories, which are the groups.
        selector: How groups are compared.
        share: How many neurons each group gets, as a share of all.
        judged: The share of each group's questions that neurons are not chosen from, but judged on.
        fill: What masked neurons are set to.
        seeds: Of the random controls.
        controls: Whether each set is masked, beside random ones, and each group asked.
        run: How it is done.
    """
    chosen_from, asked = held_out(samples, share=judged)
    scoring = partial(score, model, chosen_from, selector=selector)
    scores = run.kept("scores", Scores, lambda run: scoring(run=run))
    parameters = {"selector": selector, "share": share, "judged": judged}
    found = Selected(scores, select(scores, share=share), parameters, scores.notes)
    return found.judged_on(model, asked, value=fill, seeds=seeds, run=run) if controls else found
