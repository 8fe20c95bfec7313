"""PCICN: the neurons that noise on the input moves most, and the fewest that a model needs.

"The Achilles' Heel of LLMs" (arXiv 2510.10238) adds noise to the embeddings of one text, ``x +
alpha * eps`` with ``eps ~ N(0, I)``, and scores each entry ``s`` (a layer's output channel at a
position) by how far that moves it from its clean activation, over ``K`` noisy copies:

    Imp(s) = 1/K * sum_i |A_s(x) - A_s(x + alpha * eps_i)|

The noise is not scaled by the embeddings, scores are not averaged over positions, and all entries
are ranked in one list.

Here the noise is added at `hook_embed`, the start of the residual stream, image features merged in.
Like the ``inputs_embeds`` of the authors' code, that comes after Gemma's multiplication of the
embeddings by sqrt(d_model), which therefore does not touch the noise. Only two families do
something in between: OPT adds positions, which makes no difference; Kosmos-2 multiplies
``inputs_embeds`` by sqrt(d_model), so that its noise is weaker here than theirs would be.

Ours, for vision-language models: noise on text, image or all positions; the components before the
language model do not see the noise and are left out.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vlm_lens.analyses import collapse
from vlm_lens.analyses.critical import CriticalNeurons
from vlm_lens.analyses.entry_scores import EntryScores
from vlm_lens.analyses.noisy_runs import Noise, NoiseOn, differences, noisy_positions, prompt_of
from vlm_lens.data import Sample
from vlm_lens.hooked_root import HookNeverFiredWarning
from vlm_lens.hooks import resolve_names
from vlm_lens.hooks.heads import PATTERN_SITES
from vlm_lens.hooks.names import NamesFilter
from vlm_lens.inputs import Inputs
from vlm_lens.masking import PERPLEXITY_RATIO, Criterion
from vlm_lens.model import HookedVLM
from vlm_lens.neurons.checks import finite_number
from vlm_lens.neurons.neuron import split_name
from vlm_lens.parts import decoder_for
from vlm_lens.passes.batch import Target
from vlm_lens.results import provenance

DEGRADED_RATIO = 2.0
"""Degradation begins where perplexity has doubled; ours, the paper names no such stage."""

_NORMALIZED = ".hook_normalized"
_SITES = (
    *("attn.hook_q", "attn.hook_k", "attn.hook_v", "hook_attn_out"),
    *("cross_attn.hook_q", "hook_cross_attn_out"),
    *("mlp.hook_pre", "mlp.hook_pre_linear", "hook_mlp_out"),
)


@torch.no_grad()
def score(
    model: HookedVLM,
    sample: Sample | Inputs | str,
    *,
    alpha: int | float = 5.0,
    n_noisy: int = 100,
    noise_on: NoiseOn = "all",
    sites: NamesFilter = None,
    batch_size: int = 10,
    seed: int = 42,
    threshold: int | float = 1e-6,
    max_entries: int = 10_000,
) -> EntryScores:
    """Ranks channels at positions by how far noise on the embeddings moves them (PCICN).

    Only sums over the noisy copies are kept, so that memory grows with the prompt and the sites,
    not with `n_noisy`; what comes before the language model runs once. Noise, differences and sums
    are float32 whatever the model's dtype (float64 in a float64 model).

    Args:
        model: A model whose text model is a decoder, in evaluation mode.
        sample: One prompt: a `Sample` (its answer is not read), what `model.prepare` returns for
            one, or raw text, which as in the authors' code gets no chat template (and, unlike
            there, is not cut at 512 tokens).
        alpha: Scale of the noise, in the units of the embeddings.
        n_noisy: Number of noisy copies, the paper's K.
        noise_on: Where the noise goes; ours. "image": the positions that an image's (or a sound's)
            features fill; "text": all others; "all": everywhere, which for text is the paper's.
        sites: Hook points of the language model; None = `default_sites`. At a norm's
            ``hook_normalized`` the norm's gain counts, so that scores are those of its output.
        batch_size: How many noisy copies run at once, beside the clean prompt; makes no difference
            but for rounding.
        seed: For the noise, drawn copy by copy; the global random state is not used.
        threshold: Entries that move by no more than this are dropped; the authors' value.
        max_entries: How many entries are kept at most; the authors' number.

    Returns:
        The entries that move most, best first. An infinite score counts (under noise, an activation
        overflows); one that is not a number does not.

    Raises:
        ValueError: A number is out of range, the text model is an encoder with a decoder, the model
            is in training mode, the inputs are not one prompt, there is no image to put noise on,
            or a site has no neurons at the prompt's positions.
        HookNameError: A site matches nothing.

    Warns:
        HookNeverFiredWarning: A site that was asked for was not reached.
        UserWarning: Some scores are not a number.

    Example:
        >>> from vlm_lens import HookedVLM
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> scores = score(model, "is there a circle ?", n_noisy=4, sites="blocks.*.hook_mlp_out")
        >>> scores.to_dataframe(2).columns.tolist()[-4:]
        ['name', 'position', 'token', 'score']
        >>> scores.neurons[:3].count_by("site")
        {'hook_mlp_out': 3}
    """
    counts = {"n_noisy": n_noisy, "batch_size": batch_size, "max_entries": max_entries}
    _check(model, counts, alpha=alpha, threshold=threshold)
    prompt = prompt_of(model, sample)
    noise = Noise(noisy_positions(prompt, noise_on), alpha=alpha, seed=seed)
    names = default_sites(model) if sites is None else _chosen(model, sites)
    gains = _gains(model, names)
    copies = [min(batch_size, n_noisy - start) for start in range(0, n_noisy, batch_size)]
    with warnings.catch_warnings():
        if sites is None:  # some may not run, such as cross-attention without an image
            warnings.simplefilter("ignore", HookNeverFiredWarning)
        sums = differences(model, prompt, noise, names=names, copies=copies)
    means = {name: total / n_noisy * gains.get(name, 1.0) for name, total in sums.items()}
    settings = {"alpha": alpha, "noise_on": noise_on, "seed": seed, "threshold": threshold}
    asked = {"prompt": prompt.text, "sites": list(means), "not_a_number": _count_nan(means)}
    return EntryScores(
        sizes={name: mean.shape[1] for name, mean in means.items()},
        **_ranked(means, threshold=threshold, max_entries=max_entries),
        tokens=tuple(prompt.tokens),
        method="PCICN",
        parameters={**settings, **counts, **asked, **provenance(model)},
    )


def find_critical(
    model: HookedVLM,
    samples: Sample | str | Sequence[Sample | str],
    scores: EntryScores,
    *,
    epsilon: int | float = 1.0,
    target: Target | None = None,
    **options: Any,
) -> CriticalNeurons:
    """Masks entries of the list, best first, until perplexity is up by ``10 ** epsilon``.

    As in the authors' code, masking an entry zeroes its channel at all positions, so entries of the
    same channel mask nothing new. The search is over distinct channels, ``k`` of them; the note and
    ``parameters["n_entries"]`` say how many entries of the list these take, the authors' count.

    Args:
        model: The model.
        samples: What perplexity is measured on, usually what was scored: texts or samples.
        scores: The list of entries.
        epsilon: By how many orders of magnitude perplexity has to rise, ``Delta`` in the paper;
            other criteria than that (``collapse=...``) take its place.
        target: What perplexity is of: see `vlm_lens.masking.make_batches`. By default the text
            itself for texts, and for samples the clean model's own answer (ours).
        **options: See `vlm_lens.analyses.collapse.find_critical`.

    Raises:
        ValueError: The list is empty, `epsilon` is not above 0, or as for `collapse.find_critical`.

    Example:
        >>> from vlm_lens import HookedVLM
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> text = "scene : a red circle at the left . is there a circle ?"
        >>> found = find_critical(model, text, score(model, text, n_noisy=4), max_k=8)
        >>> found.parameters["epsilon"], found.parameters["target"]
        (1.0, 'text')
    """
    if finite_number("epsilon", epsilon) <= 0:
        raise ValueError(f"expected epsilon above 0, got {epsilon}")
    if not len(scores):
        raise ValueError("expected a list of entries to mask, got an empty one")
    items = [samples] if isinstance(samples, Sample | str) else list(samples)
    texts_only = all(isinstance(item, str) for item in items)
    noted = {"score": scores.parameters, "epsilon": epsilon, "n_entries": None}
    given = {"method": scores.method, **_criteria(epsilon), **options}
    given["parameters"] = {**noted, **options.get("parameters", {})}
    found = collapse.find_critical(
        model,
        [Sample(images=[], text=item) if isinstance(item, str) else item for item in items],
        scores.neurons,
        target=target or ("text" if texts_only else "own"),
        **given,
    )
    if found.k is None:
        return found
    n_entries = scores.n_entries(found.k)
    note = f"k = {found.k} channels are the first {n_entries} entries of the list"
    parameters = {**found.parameters, "n_entries": n_entries}
    return replace(found, parameters=parameters, notes=(note, *found.notes))


def _criteria(epsilon: int | float) -> dict[str, Any]:
    return {
        "collapse": (Criterion(PERPLEXITY_RATIO, at_least=10**epsilon),),
        "degraded": Criterion(PERPLEXITY_RATIO, at_least=DEGRADED_RATIO),
    }


def default_sites(model: HookedVLM) -> list[str]:
    """The hook points of the language model that stand for what the authors' code hooks.

    These are the outputs of the projections of queries, keys and values, of the output projection
    (`hook_attn_out`), of gate, up and down projection (`hook_mlp_out`), of the activation function
    (`hook_act`), and of the norm that Llama calls ``post_attention_layernorm`` and the authors'
    code finds by that name (``ln2.hook_normalized``). Where families differ from Llama, ours:

    - Without a gate, the activation function's output is `hook_post`.
    - Cross-attention counts like attention, except for keys and values, which see no noise.
    - In Gemma 2 and 3 the ``post_attention_layernorm`` is another norm, whose output is
      `hook_attn_out`. So nothing is taken of ``ln2``; the outputs of the output and of the down
      projection, which are normed before they are added, are no hook points.
    - The norms of queries and keys in Qwen3 and Gemma 3 are no hook points.

    Example:
        >>> from vlm_lens import HookedVLM
        >>> sites = default_sites(HookedVLM.from_pretrained("shapes-llava"))
        >>> [name for name in sites if name.startswith("blocks.0.mlp.")]
        ['blocks.0.mlp.hook_pre', 'blocks.0.mlp.hook_act', 'blocks.0.mlp.hook_pre_linear']
    """
    wanted = {
        f"blocks.{layer}.{site}"
        for layer, block in enumerate(model.blocks)
        for site in (
            *_SITES,
            "mlp.hook_act" if block.mlp.gated else "mlp.hook_post",
            *([] if hasattr(block, "ln1_post") else [f"ln2{_NORMALIZED}"]),
        )
    }
    return [name for name in model.hook_dict if name in wanted]


# What is asked for --------------------------------------------------------------------------------


def _check(
    model: HookedVLM, counts: Mapping[str, int], *, alpha: int | float, threshold: int | float
) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"expected {name} of at least 1, got {count}")
    if finite_number("alpha", alpha) <= 0:
        raise ValueError(f"expected alpha above 0, or there would be no noise, got {alpha}")
    if finite_number("threshold", threshold) < 0:
        raise ValueError(f"expected a threshold of at least 0, got {threshold}")
    decoder_for(model, "PCICN", instead="Score its neurons by another method, such as CAN.")
    if model.hf_model.training:
        raise ValueError(
            "the model is in training mode, in which dropout adds noise too: call model.eval()"
        )


def _chosen(model: HookedVLM, sites: NamesFilter) -> list[str]:
    names = resolve_names(sites, model.hook_dict)
    for name in names:
        if split_name(name)[0] != "language_model" or name.endswith(PATTERN_SITES):
            raise ValueError(
                f"expected sites of the language model that have neurons, got {name!r}: what comes "
                "before the language model does not see the noise, and attention scores and "
                "patterns have no neurons. For all blocks write 'blocks.*' in front of a site"
            )
    return names


def _gains(model: HookedVLM, names: Sequence[str]) -> dict[str, Float[Tensor, " d"]]:
    """How many times as far as its normalised input each channel of a norm's output moves."""
    return {
        name: model.get_submodule(name.removesuffix(_NORMALIZED)).w.abs()  # type: ignore[operator]
        for name in names
        if name.endswith(_NORMALIZED)
    }


# Ranking ------------------------------------------------------------------------------------------


def _count_nan(means: Mapping[str, Tensor]) -> int:
    """How many scores are not a number; warns if any are."""
    count = sum(int(mean.isnan().sum()) for mean in means.values())
    if count:
        total = sum(mean.numel() for mean in means.values())
        warnings.warn(
            f"{count} of {total} scores are not a number, because activations overflow, and are "
            "left out: run the model in float32.",
            stacklevel=4,
        )
    return count


def _ranked(
    means: Mapping[str, Float[Tensor, "pos d"]], *, threshold: int | float, max_entries: int
) -> dict[str, Tensor]:
    """The arrays of `EntryScores`; equal scores rank by site, position and channel."""
    names = ("name_index", "position", "index", "score")
    parts = [tuple(torch.zeros(0, dtype=torch.long) for _ in names)]
    for site, mean in enumerate(means.values()):
        flat = mean.flatten().nan_to_num(nan=-1.0, posinf=torch.inf)
        lowest = flat.topk(min(max_entries, len(flat))).values[-1]
        best = ((flat >= lowest) & (flat > threshold)).nonzero()[:, 0]
        d = mean.shape[1]
        columns = (torch.full_like(best, site), best // d, best % d, flat[best])
        parts.append(tuple(column.cpu() for column in columns))
    entries = [torch.cat(column) for column in zip(*parts, strict=True)]
    order = entries[-1].argsort(descending=True, stable=True)[:max_entries]
    ranked = {name: column[order] for name, column in zip(names, entries, strict=True)}
    return {**ranked, "score": ranked["score"].float()}
