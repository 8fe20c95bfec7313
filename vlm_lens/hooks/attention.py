"""Taps inside attention: rotated queries and keys, scores and pattern, read and written.

These tensors live inside Hugging Face's attention *function*, not between modules. transformers
lets a model choose that function by name, so while a tap inside attention has hooks, the model's
configuration names ours. It hands the call on to the function the user asked for (sdpa, flash,
eager). Where scores or pattern are hooked it also runs the model's own eager attention with taps
around its softmax, and lets that result count only if a hook changed something.

Towers that keep all images in one sequence call that function once for each chunk of it, unless it
is called "flash"; then they hand over the whole sequence with the chunks' borders. So under such a
name ours gets it whole, cuts it itself, and can show one pattern for each image.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, AttentionMaskInterface

from vlm_lens.hooks.patch_rows import PatchRows, put_rows, show_rows
from vlm_lens.hooks.place import Place
from vlm_lens.hooks.recomputed import unless_changed
from vlm_lens.hooks.shared import SharedAt
from vlm_lens.hooks.tap import Tap, fire, through
from vlm_lens.hooks.view import heads_view

OnTensor = Callable[[Tensor], Tensor]
Deferred = Callable[[], Tensor]
_PREFIX = "vlm_lens_"
_WHOLE = _PREFIX + "flash_like_"
_active: dict[nn.Module, list[AttentionProbe]] = {}
"""Attention modules with hooks inside, and the probes to fire there; empty when no hook is set."""


class AttentionTaps(SharedAt):
    """The taps inside one attention module, however they get at its tensors.

    Args:
        place: Where the attention module is.
        rotary: Whether its queries and keys are rotated, so that `rot_q` and `rot_k` exist.
        patch_rows: Shows the sequence in the plain layout, where the model keeps it in another one.
    """

    def __init__(
        self, place: Place, *, rotary: bool = False, patch_rows: PatchRows | None = None
    ) -> None:
        super().__init__(place)
        self.rot_q = Tap(self.use, patch_rows=patch_rows) if rotary else None
        self.rot_k = Tap(self.use, patch_rows=patch_rows) if rotary else None
        self.scores = Tap(self.use, patch_rows=patch_rows)
        self.pattern = Tap(self.use, patch_rows=patch_rows)
        self.last_call: Callable[[], tuple[Tensor, Tensor]] | None = None
        self.remembers = False


class AttentionProbe(AttentionTaps):
    """The taps inside one attention module that calls a function for its pattern.

    Args:
        place: Where the attention module is, which takes its function from `AttentionInterface`.
        rotary: Whether its queries and keys are rotated, so that `rot_q` and `rot_k` exist.
        patch_rows: Shows the sequence in the plain layout, where the model keeps it in another one.
        chunked: Whether the module calls its attention function chunk by chunk.
    """

    def __init__(
        self,
        place: Place,
        *,
        rotary: bool,
        patch_rows: PatchRows | None = None,
        chunked: bool = False,
    ) -> None:
        super().__init__(place, rotary=rotary, patch_rows=patch_rows)
        self.patch_rows, self.chunked = patch_rows, chunked

    def _put_in(self) -> None:
        """Name our attention function in the module's configuration."""
        if self.patch_rows is not None:
            self.patch_rows.use()
        _active.setdefault(self.module, []).append(self)
        _use_ours(self.module.config, whole=self.chunked)

    def _take_out(self) -> None:
        """Give the module its own attention function back."""
        if self.patch_rows is not None:
            self.patch_rows.remove()
        _active[self.module].remove(self)
        if not _active[self.module]:
            del _active[self.module]
        if not any(module.config is self.module.config for module in _active):
            _use_theirs(self.module.config)

    @property
    def moved(self) -> bool:
        """Also when the user has chosen another attention function since."""
        return super().moved or not _names_ours(self.module.config)

    def rotate(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Fire the taps on rotated queries and keys, which hooks see as [batch, pos, head, d]."""
        return self._fire(self.rot_q, query), self._fire(self.rot_k, key)

    def _fire(self, tap: Tap | None, value: Tensor) -> Tensor:
        if tap is None or not tap.has_hooks():
            return value
        if self.patch_rows is None:
            return tap(value.transpose(1, 2)).transpose(1, 2)
        rows = value.transpose(1, 2).flatten(-2)
        answer = through(tap, rows, self.patch_rows.view.then(heads_view(value.shape[1])))
        changed = rows if answer is None else answer
        return changed.unflatten(-1, (value.shape[1], -1)).transpose(1, 2)

    def keep_call(self, call: Callable[[_AroundSoftmax], Any]) -> None:
        """Keep, if asked to remember, how to compute this call's scores and pattern."""
        if self.remembers:
            self.last_call = partial(_scores_and_pattern, call)


@contextmanager
def remember_attention(probes: Mapping[str, AttentionTaps]) -> Iterator[dict[str, Deferred]]:
    """Make scores and patterns of the forward in this block computable after it.

    Nothing is computed in the forward itself; queries and keys are kept alive.

    Args:
        probes: Probes by the name of their attention (``"blocks.0.attn"``).

    Yields:
        A dictionary that holds, after the block, what computes each score and pattern by name.
    """
    deferred: dict[str, Deferred] = {}
    wired = []
    try:
        for probe in probes.values():
            wired.append((probe, probe.use()))
            probe.remembers = True
        yield deferred
        for name, probe in probes.items():
            if probe.last_call is not None:
                deferred[f"{name}.hook_attn_scores"] = partial(_part, probe.last_call, 0)
                deferred[f"{name}.hook_pattern"] = partial(_part, probe.last_call, 1)
    finally:
        for probe, handle in wired:
            probe.remembers, probe.last_call = False, None
            handle.remove()


def _part(call: Callable[[], tuple[Tensor, Tensor]], index: int) -> Tensor:
    return call()[index]


class _AroundSoftmax(TorchFunctionMode):
    """Passes what goes into the one softmax of an attention function, and what comes out, on."""

    def __init__(self, on_scores: OnTensor, on_pattern: OnTensor) -> None:
        super().__init__()
        self.on_scores, self.on_pattern = on_scores, on_pattern
        self.real_rows: Bool[Tensor, "image patch"] | None = None
        """Which rows stand for patches, where some only fill an image up; the others are zero."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ARG002
        kwargs = kwargs or {}
        if func not in (F.softmax, torch.softmax, Tensor.softmax):
            return func(*args, **kwargs)
        scores = self.on_scores(args[0])
        # Hooks see the pattern in the model's dtype, as the product with the values does.
        pattern = func(scores, *args[1:], **kwargs).to(scores.dtype)
        if self.real_rows is not None and not self.real_rows.all():
            pattern = pattern * self.real_rows[:, None, :, None]
        return self.on_pattern(pattern)


def _scores_and_pattern(call: Callable[[_AroundSoftmax], Any]) -> tuple[Tensor, Tensor]:
    seen: list[Tensor] = []

    def see(tensor: Tensor) -> Tensor:
        seen.append(tensor)
        return tensor

    with torch.no_grad():
        call(_AroundSoftmax(see, see))
    if not seen:
        raise RuntimeError("The model's eager attention called no softmax, so it has no pattern.")
    return seen[0], seen[1]


class _FireAll:
    """Fires several taps on one tensor, and remembers whether a hook changed anything."""

    def __init__(self) -> None:
        self.changed = False

    def __call__(self, taps: list[Tap], value: Tensor) -> Tensor:
        for tap in taps:
            value, changed = fire(tap, value)
            self.changed |= changed
        return value


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    base: str,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The attention function named in the configuration while a tap inside attention has hooks."""
    probes = _active.get(module, [])
    for probe in probes:
        query, key = probe.rotate(query, key)
    patch_rows = next((p.patch_rows for p in probes if p.patch_rows is not None), None)
    index = None if patch_rows is None else patch_rows.known_index()
    open_call = partial(_in_the_open, module, attention_mask, base, index, kwargs)
    q, k = query.detach(), key.detach()
    for probe in probes:  # the pattern does not depend on the values, so they are not kept
        probe.keep_call(partial(open_call, q=q, k=k, v=k))
    scores = [probe.scores for probe in probes if probe.scores.has_hooks()]
    pattern = [probe.pattern for probe in probes if probe.pattern.has_hooks()]
    theirs = partial(_theirs, base, module, query, key, value, attention_mask, **kwargs)
    if not scores and not pattern:
        return theirs()
    fire_all = _FireAll()
    around = _AroundSoftmax(partial(fire_all, scores), partial(fire_all, pattern))
    recomputed, weights = open_call(around, q=query, k=key, v=value)
    if fire_all.changed:
        return recomputed, weights
    output, their_weights = theirs()
    return unless_changed(output, recomputed, False), their_weights


def _in_the_open(
    module: nn.Module,
    mask: Tensor | None,
    base: str,
    index: Int[Tensor, "image patch"] | None,
    kwargs: dict[str, Any],
    mode: _AroundSoftmax,
    *,
    q: Tensor,
    k: Tensor,
    v: Tensor,
) -> tuple[Tensor, Tensor]:
    """The model's own eager attention under a mode that looks into it."""
    if index is None:
        additive = _additive_mask(mask, q, k, _is_causal(module, kwargs, base))
        with mode:
            return _eager_of(module)(module, q, k, v, additive, **kwargs)
    kwargs, borders = _without_borders(kwargs)
    by_image = [_by_image(tensor, index) for tensor in (q, k, v)]
    additive = _mask_by_image(index.to(q.device), borders, q.dtype)
    mode.real_rows = index.to(q.device) >= 0
    with mode:
        output, weights = _eager_of(module)(module, *by_image, additive, **kwargs)
    empty = v.transpose(1, 2).flatten(-2)
    return put_rows(output.flatten(-2), empty, index).unflatten(-1, output.shape[2:]), weights


def _by_image(tensor: Tensor, index: Int[Tensor, "image patch"]) -> Tensor:
    """[1, head, row, d] as [image, head, patch, d]."""
    rows = show_rows(tensor.transpose(1, 2).flatten(-2), index)
    return rows.unflatten(-1, (tensor.shape[1], -1)).transpose(1, 2)


def _mask_by_image(
    index: Int[Tensor, "image patch"], borders: Tensor | None, dtype: torch.dtype
) -> Float[Tensor, "image 1 patch patch"]:
    """Additive mask: patches see the real patches of their image, within the chunk they are in."""
    rows = index.clamp(min=0)
    allowed = (index >= 0)[:, None, :].expand(-1, index.shape[1], -1)
    if borders is not None:
        chunks = torch.bucketize(rows, borders.to(index.device), right=True)
        allowed = allowed & (chunks[:, :, None] == chunks[:, None, :])
    additive = torch.zeros(allowed.shape, dtype=dtype, device=index.device)
    additive = additive.masked_fill(~allowed, torch.finfo(dtype).min)
    return additive[:, None]


def _without_borders(kwargs: dict[str, Any]) -> tuple[dict[str, Any], Tensor | None]:
    """Arguments without those for packed sequences, and where the chunks begin and end."""
    packed = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
    rest = {name: value for name, value in kwargs.items() if name not in packed}
    return rest, kwargs.get("cu_seq_lens_q")


def _theirs(base: str, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
    """The attention function that the user asked for."""
    if "cu_seq_lens_q" in kwargs and "flash" not in base:
        return _theirs_by_chunk(base, module, *args, **kwargs)
    if base == "eager":
        return _eager_of(module)(module, *args, **kwargs)
    config: Any = module.config
    ours = config._attn_implementation_internal
    config._attn_implementation_internal = base  # flash attention reads its own name from there
    try:
        return AttentionInterface()[base](module, *args, **kwargs)
    finally:
        config._attn_implementation_internal = ours


def _theirs_by_chunk(
    base: str, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    """As the model does it where its attention is not called flash: chunk after chunk."""
    kwargs, borders = _without_borders(kwargs)
    assert borders is not None
    lengths = borders.diff().tolist()
    chunks = zip(*(tensor.split(lengths, dim=2) for tensor in (q, k, v)), strict=True)
    outputs = [_theirs(base, module, *chunk, mask, **kwargs)[0] for chunk in chunks]
    return torch.cat(outputs, dim=1), None


def _eager_of(module: nn.Module) -> Callable[..., tuple[Tensor, Tensor]]:
    source = sys.modules[type(module).__module__]
    eager = getattr(source, "eager_attention_forward", None)
    if eager is None:
        raise TypeError(
            f"Expected {type(module).__name__} to come with `eager_attention_forward` in "
            f"{source.__name__}, but it has none, so its scores and pattern cannot be hooked."
        )
    return eager


def _is_causal(module: nn.Module, kwargs: dict[str, Any], base: str) -> bool:
    """Whether a missing mask means a causal one (never under eager, which always gets a mask)."""
    asked = kwargs.get("is_causal")
    return base != "eager" and bool(getattr(module, "is_causal", True) if asked is None else asked)


def _additive_mask(mask: Tensor | None, query: Tensor, key: Tensor, causal: bool) -> Tensor | None:
    """Any mask that an attention function takes, as the additive one that eager attention takes."""
    n_query, n_key = query.shape[2], key.shape[2]
    if mask is not None and mask.is_floating_point():
        return mask
    if mask is None and not (causal and n_query > 1):
        return None
    if mask is None:  # sdpa aligns a causal mask with the upper left corner
        allowed = torch.ones(n_query, n_key, dtype=torch.bool, device=query.device).tril()
    elif mask.ndim == 2:  # flash attention: one flag a key, causality left to the kernel
        allowed = mask[:, None, None, -n_key:].bool()
        if causal:
            square = torch.ones(n_query, n_key, dtype=torch.bool, device=query.device)
            allowed = allowed & square.tril(n_key - n_query)
    else:
        allowed = mask.bool()
    lowest = torch.full((), torch.finfo(query.dtype).min, dtype=query.dtype, device=query.device)
    return torch.where(allowed, torch.zeros_like(lowest), lowest)


def _names_ours(config: Any) -> bool:
    return (config._attn_implementation or "").startswith(_PREFIX)


def _use_ours(config: Any, *, whole: bool) -> None:
    if _names_ours(config):
        return
    base = config._attn_implementation or "eager"
    ours = (_WHOLE if whole else _PREFIX) + base
    AttentionInterface.register(ours, partial(_attention, base=base))
    if base in AttentionMaskInterface():  # a custom function may do without a mask
        AttentionMaskInterface.register(ours, AttentionMaskInterface()[base])
    config._attn_implementation_internal = ours


def _use_theirs(config: Any) -> None:
    current = config._attn_implementation_internal
    config._attn_implementation_internal = current.removeprefix(_WHOLE).removeprefix(_PREFIX)
