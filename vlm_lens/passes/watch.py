"""The hook function that a pass hangs on hook points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vlm_lens.inputs import Inputs
from vlm_lens.model import HookedVLM
from vlm_lens.neurons.neuron import split_name
from vlm_lens.passes.answers import Answers
from vlm_lens.passes.batch import Batch, make_batch
from vlm_lens.passes.forwards import backward, forward, hooked, loss_scale
from vlm_lens.passes.positions import Positions
from vlm_lens.passes.reducers import Beside, Reading, Reducer, State


class Watch:
    """Reduces what comes by at hook points while the model runs on a batch.

    It is a hook function: hang it on any hook points, run the model, and read `states`.

    Args:
        model: The model.
        batch: What it runs on: a batch, or inputs that are prepared.
        reducers: What is kept, by name.

    Attributes:
        states: By reducer and hook point.

    Raises:
        ValueError: While the model runs: a hook point comes by a second time, or something that is
            read beside one comes by after it.

    Example:
        >>> from vlm_lens import HookedVLM, load_samples
        >>> from vlm_lens.passes import Total, mean_of
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> [sample] = load_samples("shapes-llava", n=1)
        >>> inputs = model.prepare(images=sample.images, text=sample.text)
        >>> watch = Watch(model, inputs, {"mean": Total(mean_of, over="image")})
        >>> _ = model.run_with_hooks(inputs, fwd_hooks=[("blocks.0.mlp.hook_act", watch)])
        >>> watch.states["mean", "blocks.0.mlp.hook_act"]["sum"].shape
        torch.Size([384])
    """

    def __init__(
        self, model: HookedVLM, batch: Batch | Inputs, reducers: Mapping[str, Reducer]
    ) -> None:
        made = make_batch(model, batch, Answers()) if isinstance(batch, Inputs) else batch
        self.states: dict[tuple[str, str], State] = {}
        self._model, self._reducers = model, reducers
        self._positions = Positions(made)
        self._seen: set[str] = set()
        self._beside: dict[str, dict[str, Tensor]] = {}
        self._waiting: dict[str, Tensor] = {}

    def hooks(self, sites: Sequence[str]) -> list[Any]:
        """Itself at some hook points, and what reads the ones beside them that reducers need."""
        points: dict[str, list[_Needed]] = {}
        for site in sites:
            for beside in {b for reducer in self._reducers.values() for b in reducer.beside}:
                if (point := point_of(beside, site, self._model.hook_dict)) is not None:
                    points.setdefault(point, []).append(_Needed(site, beside))
        before = [(point, partial(self._keep, needed)) for point, needed in points.items()]
        return [*before, (list(sites), self)]

    def _keep(self, needed: Sequence[_Needed], tensor: Tensor, hook: HookPoint) -> None:
        kept: dict[Beside, Tensor] = {}
        for one in needed:
            if one.site in self._seen:
                raise ValueError(
                    f"{hook.name!r} comes by after {one.site!r}, and so cannot be read beside it: "
                    "choose sites behind it"
                )
            if one.beside not in kept:
                of = one.beside.of or (lambda tensor, *_: tensor)
                kept[one.beside] = of(tensor.detach(), str(hook.name), self._positions)
            self._beside.setdefault(one.site, {})[one.beside.name] = kept[one.beside]

    def __call__(self, tensor: Tensor, hook: HookPoint) -> Tensor | None:
        """Reduces what comes by; where gradients are wanted, as soon as there is one."""
        site = str(hook.name)
        if site in self._seen:
            raise ValueError(
                f"{site!r} came by twice: a Watch is for one run on one batch, in which every part "
                "of the model runs once. Make a new one for each run; give images and videos apart"
            )
        self._seen.add(site)
        plain = {n: reducer for n, reducer in self._reducers.items() if not reducer.gradient}
        beside = self._beside.pop(site, {})
        self._reduce(plain, Reading(site, tensor.detach(), self._positions, None, beside))
        if len(plain) == len(self._reducers):
            return None
        # All weights before this point are frozen: unless a site came before, the graph starts.
        watched = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
        self._waiting[site] = watched.detach()
        watched.register_hook(partial(self._add_gradient, site, beside))
        return watched

    def _add_gradient(self, site: str, beside: Mapping[str, Tensor], gradient: Tensor) -> None:
        wanting = {n: reducer for n, reducer in self._reducers.items() if reducer.gradient}
        activation = self._waiting.pop(site)
        scaled = gradient if (scale := loss_scale(self._model)) == 1 else gradient.float() / scale
        self._reduce(wanting, Reading(site, activation, self._positions, scaled, beside))

    def without_gradient(self) -> None:
        """After the backward: what the loss does not depend on has a gradient of 0."""
        for site, activation in list(self._waiting.items()):
            self._add_gradient(site, {}, activation.new_zeros(activation.shape))

    def _reduce(self, reducers: Mapping[str, Reducer], reading: Reading) -> None:
        for name, reducer in reducers.items():
            if state := reducer(reading):
                self.states[name, reading.site] = state


@dataclass(frozen=True, eq=False)
class _Needed:
    """That something is read beside a site."""

    site: str
    beside: Beside


def point_of(beside: Beside, site: str, every: Mapping[str, Any]) -> str | None:
    """The hook point beside a site, in its layer; None where the layer has none.

    Example:
        >>> queries = Beside("queries", ("attn.hook_rot_q", "attn.hook_q"))
        >>> point_of(queries, "blocks.3.mlp.hook_act", {"blocks.3.attn.hook_q": ...})
        'blocks.3.attn.hook_q'
    """
    block = site.removesuffix(split_name(site)[2])
    return next((f"{block}{end}" for end in beside.points if f"{block}{end}" in every), None)


def reduced(
    model: HookedVLM, batch: Batch, reducers: Mapping[str, Reducer], sites: Sequence[str]
) -> dict[tuple[str, str], State]:
    """What reducers make of a batch: one forward and, where gradients are wanted, one backward.

    Args:
        model: The model; its parameters' gradients are neither needed nor touched.
        batch: The samples.
        reducers: What is kept, by name.
        sites: Hook points.

    Returns:
        By reducer and hook point, in the order of the hook points; those that are not reached, or
        of which nothing counts, are missing.
    """
    watch = Watch(model, batch, reducers)
    with hooked(model, watch.hooks(sites)):
        if any(reducer.gradient for reducer in reducers.values()):
            backward(model, batch)
            watch.without_gradient()
        else:
            forward(model, batch)
    keys = [(name, site) for name in reducers for site in sites]
    return {key: watch.states[key] for key in keys if key in watch.states}
