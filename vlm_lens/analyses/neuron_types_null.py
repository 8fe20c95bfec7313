"""What the types of neurons would be if it were chance which tokens are an image's: exactly.

The null hypothesis is that a neuron's activations have nothing to do with what kind of token they
are at. The permutation that goes with it (ours; the paper has none): within each sample, the visual
tokens and the text tokens are pooled, keep their activations, and it is drawn anew, all draws alike
likely, which of them are called visual; there are as many of them as before. Samples are drawn
independently. A neuron's top samples and its normalisation do not depend on the draw.

Under it the numbers of activated tokens of a sample are hypergeometric, so that the chance that the
sample counts as visual, text, multi-modal or unknown is a sum of a few terms; and how many of a
neuron's top samples are of a type is a sum of independent yes-or-no draws. Both are computed, not
sampled: the p-values are those of all permutations, and have no seed and no least value.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

Counts = Int[Tensor, " n"]
Chances = Float[Tensor, "4 n"]


def sample_chances(
    *,
    n_visual: Counts,
    n_text: Counts,
    above_visual: Counts,
    above_text: Counts,
    visual_first: bool,
    need_visual: int,
    need_text: int,
) -> Chances:
    """How likely a sample is visual, text, multi-modal and unknown if the tokens' kinds are drawn.

    Args:
        n_visual: How many visual tokens the sample has.
        n_text: How many text tokens.
        above_visual: How many of both are above the threshold of visual tokens.
        above_text: How many of both are above the threshold of text tokens.
        visual_first: Whether the threshold of visual tokens is the lower one (or they are equal).
        need_visual: At least so many visual tokens above theirs make a sample visual-activated.
        need_text: Likewise for text.

    Returns:
        One row for each type, float64; they add up to 1.

    Example:
        One visual and one text token, one of which is active, need only be one each:

        >>> one = torch.tensor([1])
        >>> sample_chances(n_visual=one, n_text=one, above_visual=one, above_text=one,
        ...                visual_first=True, need_visual=1, need_text=1)[:, 0].tolist()
        [0.5, 0.5, 0.0, 0.0]
    """
    if not visual_first:  # the same with the names changed
        visual, text, both, neither = sample_chances(
            n_visual=n_text,
            n_text=n_visual,
            above_visual=above_text,
            above_text=above_visual,
            visual_first=True,
            need_visual=need_text,
            need_text=need_visual,
        )
        return torch.stack([text, visual, both, neither])
    n = n_visual + n_text
    all_ways = _log_choose(n, n_visual)
    not_visual = not_text = neither = torch.zeros_like(all_ways)
    rest = n - above_visual
    for x in range(need_visual):  # visual tokens that are activated
        ways = _log_choose(above_visual, x) + _log_choose(rest, n_visual - x)
        not_visual = not_visual + (ways - all_ways).exp()
        for y in range(need_text):  # text tokens that are: of those above the higher threshold
            between = x - (above_text - y)  # visual tokens between the thresholds
            ways = _log_choose(above_text, y) + _log_choose(above_visual - above_text, between)
            neither = neither + (ways + _log_choose(rest, n_visual - x) - all_ways).exp()
    for y in range(need_text):
        ways = _log_choose(above_text, y) + _log_choose(n - above_text, n_text - y)
        not_text = not_text + (ways - all_ways).exp()
    visual, text = not_text - neither, not_visual - neither
    both = 1 - not_visual - not_text + neither
    return torch.stack([visual, text, both, neither]).clamp_(0, 1)


def _log_choose(n: Counts, k: Counts | int) -> Float[Tensor, " n"]:
    """Logarithm of the number of ways to choose k of n; -infinity where there is none."""
    n, k = n.double(), torch.as_tensor(k, device=n.device).double()
    ways = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    return ways.where((k >= 0) & (k <= n), -torch.inf)


def one_more(
    counts: Float[Tensor, "types counts n"], chances: Float[Tensor, "types n"]
) -> Float[Tensor, "types counts n"]:
    """How likely each number of samples of a type is, with one more sample.

    Args:
        counts: The chances of 0, 1, 2, ... before it.
        chances: How likely this sample is of the type.

    Example:
        >>> before = torch.tensor([[[0.5], [0.5], [0.0]]])
        >>> one_more(before, torch.tensor([[0.5]]))[0, :, 0].tolist()
        [0.25, 0.5, 0.25]
    """
    likely = chances[:, None]
    after = counts * (1 - likely)
    after[:, 1:] += counts[:, :-1] * likely
    return after


def convolved(
    one: Float[Tensor, "types counts n"], other: Float[Tensor, "types counts n"]
) -> Float[Tensor, "types counts n"]:
    """How likely each number of samples of a type is, of the samples of both.

    Example:
        >>> half = torch.tensor([[[0.5], [0.5], [0.0]]])
        >>> convolved(half, half)[0, :, 0].tolist()
        [0.25, 0.5, 0.25]
    """
    n_counts, both = one.shape[1], torch.zeros_like(one)
    most = int(other.amax((0, 2)).nonzero().max())
    for more in range(most + 1):
        both[:, more:] += one[:, : n_counts - more] * other[:, more, None]
    return both


def tails(
    counts: Float[Tensor, "types counts n"], found: Int[Tensor, "types n"]
) -> Float[Tensor, "types n"]:
    """How likely at least as many samples as were found are of each type.

    Example:
        >>> tails(torch.tensor([[[0.25], [0.5], [0.25]]]), torch.tensor([[1]])).item()
        0.75
    """
    at_least = counts.flip(1).cumsum(1).flip(1)
    return at_least.gather(1, found[:, None].long())[:, 0].clamp_(max=1.0)


def false_discovery_rates(p_values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The smallest rate of false discoveries at which each of many tests is one.

    Benjamini and Hochberg 1995, "Controlling the false discovery rate".

    Example:
        >>> false_discovery_rates(torch.tensor([0.01, 0.5, 0.02])).tolist()
        [0.029999999329447746, 0.5, 0.029999999329447746]
    """
    order = p_values.argsort(descending=True)
    ranks = torch.arange(len(p_values), 0, -1, device=p_values.device)
    scaled = p_values[order] * len(p_values) / ranks
    rates = torch.empty_like(p_values)
    rates[order] = scaled.cummin(0).values.clamp_(max=1.0)
    return rates
