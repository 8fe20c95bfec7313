"""Gradient times activation of many neurons at once, reduced while the model runs."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformer_lens.hook_points import HookPoint

from vlm_lens.analyses.token_pool import TokenPool, Tokens
from vlm_lens.hooked_root import HookNeverFiredWarning
from vlm_lens.masking.examples import Batch
from vlm_lens.model import HookedVLM

_LOSS_SCALE = {torch.float16: 1024.0}
"""What losses are multiplied with before backward, so that float16 can hold their gradients."""


@dataclass(frozen=True, kw_only=True)
class Importance:
    """``|gradient| ** alpha * |activation| ** activation_power``, and how positions are pooled.

    Attributes:
        alpha: Exponent of the gradient; with 0 there is no gradient, and no backward.
        activation_power: Exponent of the activation.
        tokens: How a sample's positions become one number; see `TokenPool`.
        first_token: Whether the first token of the language model's sequences counts.

    Raises:
        ValueError: An exponent is not from 0 to 1, both are 0, `tokens` is unknown, or nothing
            is left to look at.

    Example:
        >>> Importance(alpha=0.5)(torch.tensor([-3.0]), torch.tensor([-4.0]))
        tensor([6.])
    """

    alpha: int | float
    activation_power: int | float = 1.0
    tokens: Tokens = "max"
    first_token: bool = True

    def __post_init__(self) -> None:
        for name in ("alpha", "activation_power"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"expected {name} from 0 to 1, got {value!r}")
        if self.alpha == self.activation_power == 0:
            raise ValueError("with alpha and activation_power 0 every neuron scores alike")
        if self.tokens not in get_args(Tokens):
            raise ValueError(f"expected tokens of {list(get_args(Tokens))}, got {self.tokens!r}")
        if self.tokens == "last" and not self.first_token:
            raise ValueError(
                "first_token=False leaves out a position that tokens='last' does not look at: use "
                "one of the two"
            )

    def __call__(
        self,
        activation: Float[Tensor, "*pos d"],
        gradient: Float[Tensor, "*pos d"] | None = None,
        *,
        out: Float[Tensor, "*pos d"] | None = None,
    ) -> Float[Tensor, "*pos d"]:
        """The importance at each position, at least in float32; written into `out` if given."""
        if out is None:
            wide = torch.promote_types(activation.dtype, torch.float32)
            out = torch.empty_like(activation, dtype=wide)
        if gradient is None:
            return _power(activation, self.activation_power, out)
        _power(gradient, self.alpha, out)
        if self.activation_power == 1:
            return out.mul_(activation).abs_()
        return out.mul_(_power(activation, self.activation_power, torch.empty_like(out)))


def _power(
    x: Float[Tensor, "*pos d"], exponent: int | float, out: Float[Tensor, "*pos d"]
) -> Float[Tensor, "*pos d"]:
    """|x| to a power, in the precision of `out`."""
    if x.dtype == out.dtype:
        torch.abs(x, out=out)
    else:
        out.copy_(x).abs_()
    if exponent == 0.5:
        return out.sqrt_()  # a little faster
    return out if exponent == 1 else out.pow_(exponent)


def batch_sums(
    model: HookedVLM, batch: Batch, names: Sequence[str], importance: Importance
) -> dict[str, Float[Tensor, " d"]]:
    """The sums of all neurons' importances over the samples of a batch.

    One forward and, unless ``alpha`` is 0, one backward, in which the hooks reduce activations and
    gradients as soon as they are there. The losses of the samples are added up, so that a gradient
    is that of its own sample's loss, whatever else is in the batch.

    Args:
        model: The model; its parameters' gradients are neither needed nor touched.
        batch: The samples.
        names: Hook points.
        importance: What is summed.

    Returns:
        By hook name, a sum for each neuron, at least in float32; hook points that were not reached
        are missing.

    Example:
        >>> from vlm_lens import load_samples
        >>> from vlm_lens.masking import make_batches
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> [batch] = make_batches(model, load_samples("shapes-llava", n=2))
        >>> sums = batch_sums(model, batch, ["projector.hook_out"], Importance(alpha=0.5))
        >>> len(sums["projector.hook_out"]) == model.cfg.d_model
        True
    """
    pool = TokenPool(batch, importance.tokens, first_token=importance.first_token)
    sums: dict[str, Tensor] = {}
    if importance.alpha == 0:
        with torch.no_grad(), _hooked(model, names, _reducer(sums, pool, importance)):
            model(batch.arguments, return_type=None, use_cache=False)
        return sums
    scale = _LOSS_SCALE.get(model.cfg.dtype, 1.0)
    hook = _gradient_reducer(sums, pool, importance)
    with torch.enable_grad(), frozen(model.hf_model), _hooked(model, names, hook):
        (_losses(model, batch).sum() * scale).backward()
    return {name: total / scale**importance.alpha for name, total in sums.items()}


def _reducer(sums: dict[str, Tensor], pool: TokenPool, importance: Importance) -> Callable:
    def reduce(tensor: Tensor, hook: HookPoint) -> None:
        sums[str(hook.name)] = pool(str(hook.name), importance, tensor)

    return reduce


def _gradient_reducer(
    sums: dict[str, Tensor], pool: TokenPool, importance: Importance
) -> Callable[..., Tensor]:
    """A forward hook that has activation and gradient reduced as soon as there is a gradient."""

    def watch(tensor: Tensor, hook: HookPoint) -> Tensor:
        name = str(hook.name)
        # All weights before this point are frozen: unless a site came before, the graph starts.
        watched = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
        wide = torch.promote_types(watched.dtype, torch.float32)
        # A layer that the loss does not depend on gets no gradient: its sum stays 0.
        sums[name] = watched.new_zeros(watched.shape[-1], dtype=wide, requires_grad=False)
        kept = [watched.detach()]
        watched.register_hook(partial(_add_to, sums[name], pool, name, importance, kept))
        return watched

    return watch


def _add_to(
    total: Tensor,
    pool: TokenPool,
    name: str,
    importance: Importance,
    kept: list[Tensor],
    gradient: Tensor,
) -> None:
    total += pool(name, importance, kept.pop(), gradient)


@contextmanager
def _hooked(model: HookedVLM, names: Sequence[str], hook: Callable[..., Any]) -> Iterator[None]:
    """A hook at all hook points; a batch without images is no reason for a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HookNeverFiredWarning)
        with model.hooks([(list(names), hook)]):
            yield


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Freezes a module's parameters for the length of a ``with`` block.

    Example:
        >>> linear = nn.Linear(2, 2)
        >>> with frozen(linear):
        ...     linear.weight.requires_grad
        False
        >>> linear.weight.requires_grad
        True
    """
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def _losses(model: HookedVLM, batch: Batch) -> Float[Tensor, " sample"]:
    """Each sample's mean cross entropy over its answer's tokens."""
    columns = batch.scored.any(0).nonzero()[:, 0]
    if "logits_to_keep" in inspect.signature(model.hf_model.forward).parameters:
        logits = model(batch.arguments, use_cache=False, logits_to_keep=columns)
    else:
        logits = model(batch.arguments, use_cache=False)[:, columns]
    scored = batch.scored[:, columns].to(logits.device)
    targets = batch.targets[:, columns].to(logits.device)
    wide = torch.promote_types(logits.dtype, torch.float32)
    each = F.cross_entropy(logits[scored].to(wide), targets[scored], reduction="none")
    sums = each.new_zeros(len(batch)).index_add(0, scored.nonzero()[:, 0], each)
    return sums / scored.sum(1)
