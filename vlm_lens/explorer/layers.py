"""The activations of a hook point, computed when asked for, and what sums up each neuron."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vlm_lens.explorer.spaces import Space, space_at
from vlm_lens.explorer.spread import Spread, pattern_names, spread_of
from vlm_lens.explorer.subject import Subject
from vlm_lens.hooks.names import NamesFilter
from vlm_lens.inputs.batch import token_strings
from vlm_lens.model import HookedVLM
from vlm_lens.neurons.sites import sites
from vlm_lens.passes.forwards import hooked

KEPT = 6
"""So many hook points' activations stay in memory: in a 7B model some 30 MB each."""


@dataclass(frozen=True, eq=False)
class Layer:
    """What the neurons of one hook point do.

    Attributes:
        space: What its positions are.
        activations: Of all entries of the space, float32.
        effect: By how much the answer's lead would shrink without each neuron, in logits and to
            first order: activation times gradient, summed over all positions. None if not asked
            for. The lead is how far the logits of the answer's tokens are above those of the
            likeliest other tokens; it does not saturate, as the probability of a sure answer does.
    """

    space: Space
    activations: Float[np.ndarray, "entry neuron"]
    effect: Float[np.ndarray, " neuron"] | None

    @cached_property
    def largest(self) -> Float[np.ndarray, " neuron"]:
        """Each neuron's largest activation. Special tokens, which dwarf all others, are left out"""
        return self._plain.max(0)

    @cached_property
    def limit(self) -> Float[np.ndarray, " neuron"]:
        """The magnitude that gets the full colour: the largest one, special tokens left out."""
        return np.abs(self._plain).max(0)

    @property
    def _plain(self) -> Float[np.ndarray, "some neuron"]:
        plain = ~self.space.is_modality("special")
        return self.activations[plain] if plain.any() else self.activations

    @cached_property
    def image(self) -> Float[np.ndarray, " neuron"]:
        """Mean over image (or audio) positions; NaN where there are none."""
        return _mean(self.activations[self.space.is_modality("image", "audio")])

    @cached_property
    def text(self) -> Float[np.ndarray, " neuron"]:
        """Mean over text positions, special tokens left out; NaN where there are none."""
        return _mean(self.activations[self.space.is_modality("text")])

    @cached_property
    def selectivity(self) -> Float[np.ndarray, " neuron"]:
        """How much more active on the image than on text: the difference of the means over the
        standard deviation of both together. NaN where one of them is missing."""
        both = self.activations[self.space.is_modality("image", "audio", "text")]
        spread = both.std(0) if len(both) else np.full_like(self.image, np.nan)
        difference = self.image - self.text
        # A neuron that never changes prefers nothing.
        return np.divide(difference, spread, out=0 * difference, where=spread > 0)

    def most_active(self, entry: int, k: int) -> Int[np.ndarray, " k"]:
        """The neurons with the largest activations at an entry, best first, equal ones by index."""
        return np.argsort(-self.activations[entry], kind="stable")[:k]


def _mean(values: Float[np.ndarray, "n neuron"]) -> Float[np.ndarray, " neuron"]:
    if not len(values):
        return np.full(values.shape[1], np.nan, dtype=np.float32)
    return values.mean(0, dtype=np.float64).astype(np.float32)


class Layers:
    """The hook points of a model on one prompt and its answer.

    Args:
        subject: The prompt and its answer.
        names: Hook points to offer; those without neurons are left out.
        effects: Whether effects on the answer are computed, which takes a backward pass for each
            hook point.

    Attributes:
        sizes: The number of neurons at each hook point that the prompt reaches.
        spaces: The position space of each.
        spread: What gives queries a place; None where image tokens are no queries.

    Example:
        >>> from vlm_lens import HookedVLM
        >>> from vlm_lens.explorer.subject import make_subject
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> layers = Layers(make_subject(model, model.prepare(text="what color ?")))
        >>> layers.sizes["blocks.0.mlp.hook_post"], "projector.hook_out" in layers.sizes
        (384, False)
        >>> layers["blocks.0.mlp.hook_post"].activations.shape[1]
        384
    """

    def __init__(
        self, subject: Subject, *, names: NamesFilter = None, effects: bool = True
    ) -> None:
        self._subject, self._effects = subject, effects
        self._known: OrderedDict[str, Layer] = OrderedDict()
        self.sizes: dict[str, int] = {}
        self.spaces: dict[str, Space] = {}
        self.spread: Spread | None = None
        self._find(sites(subject.model, names))

    def _find(self, names: list[str]) -> None:
        """What is not reached has no neurons to show."""
        subject = self._subject
        shapes, self.spread = self._reached(names)
        beside = _query_text(subject)
        spaces: dict[str, Space] = {}
        for name in names:
            if len(shapes.get(name, ())) == 3:
                space = space_at(
                    name,
                    shapes[name],
                    subject.token_map,
                    decoder=subject.decoder_map,
                    query_text=beside,
                )
                self.sizes[name] = shapes[name][2]
                self.spaces[name] = spaces.setdefault(space.key, space)
        if not self.sizes:
            raise ValueError(
                f"none of the {len(names)} hook points is reached by this prompt: hook points of "
                "the vision encoder and the projector need an image"
            )

    @torch.no_grad()
    def _reached(self, names: list[str]) -> tuple[dict[str, tuple[int, ...]], Spread | None]:
        """One forward, for the shapes and for what queries attend to."""
        shapes: dict[str, tuple[int, ...]] = {}
        patterns: dict[str, Tensor] = {}

        def note(tensor: Tensor, hook: HookPoint) -> None:
            shapes[str(hook.name)] = tuple(tensor.shape)

        def keep(pattern: Tensor, hook: HookPoint) -> None:
            patterns[str(hook.name)] = pattern

        model, subject = self._subject.model, self._subject
        hooks: list[Any] = [(names, note)]
        hooks += [(name, keep) for name in pattern_names(model, subject.token_map)]
        with hooked(model, hooks):
            model(subject.arguments, return_type=None)
        return shapes, spread_of(patterns, subject.token_map)

    def __getitem__(self, name: str) -> Layer:
        if name not in self.sizes:
            raise KeyError(
                f"there is no hook point {name!r} to explore: it has no neurons, was left out, or "
                "this prompt does not reach it"
            )
        if name not in self._known:
            self._known[name] = self._read(name)
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(name)
        return self._known[name]

    def _read(self, name: str) -> Layer:
        """One forward; and one backward from the answer's lead down to here."""
        kept: dict[str, Tensor] = {}

        def keep(tensor: Tensor, hook: HookPoint) -> Tensor | None:
            kept[str(hook.name)] = tensor.detach().requires_grad_(self._effects)
            return kept[str(hook.name)] if self._effects else None

        model, subject = self._subject.model, self._subject
        hooks: list[Any] = [(name, keep)]
        with torch.set_grad_enabled(self._effects), _frozen(model), hooked(model, hooks):
            lead = _lead(subject, model(subject.arguments))
            values, effect = kept[name].detach().float().flatten(0, 1), None
            if self._effects:
                # A layer behind the one that the projector reads does not reach the answer.
                gradient = torch.zeros_like(kept[name])
                if lead.requires_grad:
                    [gradient] = torch.autograd.grad(lead, [kept[name]])
                effect = (gradient.float().flatten(0, 1) * values).sum(0).cpu().numpy()
        space = self.spaces[name]
        return Layer(space, values.cpu().numpy()[space.rows], effect)


def _query_text(subject: Subject) -> list[str]:
    ids = subject.arguments.get("qformer_input_ids")
    if ids is None:
        return []
    processor = subject.model.processor
    return token_strings(processor.qformer_tokenizer, ids[0].tolist())


def _lead(subject: Subject, logits: Float[Tensor, "1 pos d_vocab"]) -> Float[Tensor, ""]:
    """How far the answer's tokens are above the likeliest others, summed over the answer."""
    each = subject.answer_logits(logits).float()
    tokens = subject.answer_tokens.to(each.device)[:, None]
    others = each.scatter(-1, tokens, -torch.inf)
    return (each.gather(-1, tokens)[:, 0] - others.amax(-1)).sum()


@contextmanager
def _frozen(model: HookedVLM) -> Iterator[None]:
    """Without gradients of weights, the graph starts at the activation and stays small."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
