"""Running some of the language model's layers: up to one of them, or from one of them on.

Nothing is computed twice and nothing is left behind: a run that stops leaves the model by an
exception at the entry of a layer, and one that starts late has stand-ins in the places of the
layers before, which are gone when the block ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from vlm_lens.hooks import Tap
from vlm_lens.keywords import keywords_of, of_forward
from vlm_lens.parts import Text, text_for


def layer_number(option: str, given: object, n_layers: int, *, last: int) -> int:
    """A layer as TransformerLens counts it: negative numbers count from the end.

    Args:
        option: What the user calls it, for the message.
        given: The number.
        n_layers: How many layers there are.
        last: The largest number that makes sense.

    Raises:
        TypeError: It is no integer.
        ValueError: There is no such layer.

    Example:
        >>> layer_number("stop_at_layer", -1, 4, last=4)
        3
    """
    if not isinstance(given, int) or isinstance(given, bool):
        raise TypeError(f"Expected {option} as the number of a layer, got {given!r}.")
    if not -n_layers <= given <= last:
        raise ValueError(
            f"Expected {option} from {-n_layers} to {last}, since the language model has "
            f"{n_layers} layers, got {given}."
        )
    return given + n_layers if given < 0 else given


class _Reached(Exception):
    """The layer to stop at was reached; carries what would have entered it."""

    def __init__(self, stream: Tensor) -> None:
        super().__init__("the layer to stop at")
        self.stream = stream


class Stop:
    """Where a run that stopped early puts the residual stream."""

    stream: Tensor | None = None


@contextmanager
def stopped_before(
    layers: list[nn.Module], n: int, *, then: nn.Module | None, embed: Tap | None
) -> Iterator[Stop]:
    """Stop whatever runs in the block at the entry of a layer, before the layer's own hooks.

    Args:
        layers: The layers of the language model.
        n: The number of the layer; one more than the last stops after all of them.
        then: What runs after the layers; None where nothing does.
        embed: The hook point of the embedding, where it lies at the entry of the first layer and
            would not be reached when that is where the run stops.

    Example:
        >>> import torch
        >>> layers = nn.Sequential(nn.Identity(), nn.ReLU())
        >>> with stopped_before(list(layers), 1, then=None, embed=None) as stop:
        ...     _ = layers(torch.tensor([-1.0]))
        >>> stop.stream
        tensor([-1.])
    """
    stop = Stop()

    def leave(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        stream = args[0] if args else kwargs["hidden_states"]
        raise _Reached(stream if n > 0 or embed is None else embed(stream))

    def leave_last(_module: nn.Module, _args: tuple, output: Any) -> None:
        raise _Reached(output if isinstance(output, Tensor) else output[0])

    with ExitStack() as handles:
        # Not every layer runs in every forward: Mllama's without an image leaves some out.
        for module in (*layers[n:], *(() if then is None else (then,))):
            handle = module.register_forward_pre_hook(leave, with_kwargs=True, prepend=True)
            handles.callback(handle.remove)
        if then is None:
            handles.callback(layers[-1].register_forward_hook(leave_last).remove)
        try:
            yield stop
        except _Reached as reached:
            stop.stream = reached.stream


class _StandIn(nn.Module):
    """In the place of a layer that is not run; what it returns, nobody reads."""

    def __init__(self, layer: nn.Module, stream: Tensor) -> None:
        super().__init__()
        object.__setattr__(self, "_layer", layer)  # not a submodule: it stays where it was
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        """What the model asks a layer for besides running it, such as its kind of attention."""
        return getattr(object.__getattribute__(self, "_layer"), name)

    def forward(self, *_: Any, **__: Any) -> Tensor:
        return self._stream


@contextmanager
def started_at(
    layers: nn.ModuleList, n: int, stream: Float[Tensor, "batch pos d_model"]
) -> Iterator[None]:
    """Let whatever runs in the block enter a layer with this stream, and run none before it.

    Args:
        layers: The list that the language model keeps its layers in.
        n: The number of the layer.
        stream: The residual stream before it.

    Example:
        >>> import torch
        >>> layers = nn.ModuleList([nn.ReLU(), nn.Tanh()])
        >>> with started_at(layers, 1, torch.zeros(1, 1, 2)):
        ...     layers[1](layers[0](torch.ones(1, 1, 2))).sum().item()
        0.0
    """

    given = [stream]

    def enter(_module: nn.Module, args: tuple, kwargs: dict) -> Any:
        if not given:
            return None
        entering = given.pop()
        if args:
            return (entering, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": entering}

    before = list(layers)[:n]
    with ExitStack() as handles:
        # As above, the layer itself may be left out.
        for layer in list(layers)[n:]:
            handle = layer.register_forward_pre_hook(enter, with_kwargs=True, prepend=True)
            handles.callback(handle.remove)
        for i, layer in enumerate(before):
            handles.callback(layers.__setitem__, i, layer)
            layers[i] = _StandIn(layer, stream)
        yield


# What the towers read; nobody reads it where the language model starts behind them.
_MEDIA = (
    *("pixel_values", "pixel_values_videos", "input_features", "image_embeds"),
    *("image_embeds_position_mask", "mm_encoder_outputs"),
)
# What a language model reads of each position besides its stream and whether it is padding.
_BESIDE_THE_STREAM = ("token_type_ids", "mm_token_type_ids", "cross_attention_mask")


def run_part(
    model: Any,
    given: Any,
    kwargs: dict[str, Any],
    *,
    prepend_bos: bool | None,
    padding_side: str | None,
    start_at_layer: int | None,
    stop_at_layer: int | None,
) -> tuple[dict[str, Any], Any]:
    """Run some layers of a `HookedVLM`; see its `forward`.

    Args:
        model: The model.
        given: Its input, or the residual stream to start with.
        kwargs: Further arguments of the Hugging Face forward.
        prepend_bos: For raw text.
        padding_side: For raw text.
        start_at_layer: The first layer to run; None for the whole way from the input.
        stop_at_layer: The first layer not to run; None for the whole way to the logits.

    Returns:
        The arguments that say what the tokens were, and the residual stream where the run stops,
        or what Hugging Face's model returned.

    Raises:
        TypeError: The input is none, or a layer is no number.
        ValueError: There is no such layer, or the model cannot start or stop there.
    """
    text = text_for(model, "stop_at_layer and start_at_layer")
    start, stop = _bounds(len(text.layers), start_at_layer, stop_at_layer)
    run, arguments = model.hf_model, kwargs
    if start is None:
        arguments = model._arguments(given, prepend_bos, kwargs, padding_side)
    else:
        run, arguments = _arguments_from(model, text, given, kwargs)
    if arguments.get("past_key_values") is not None:
        raise ValueError(
            "stop_at_layer and start_at_layer would leave past_key_values half a step behind: run "
            "the whole sequence, without past_key_values."
        )
    first, end = start or 0, len(text.layers) if stop is None else stop
    with model._run(f"Of the language model's layers, {first} to {end - 1} ran."):
        return {**kwargs, **arguments}, _output(model, text, run, arguments, given, start, stop)


def _output(
    model: Any,
    text: Text,
    run: Any,
    arguments: dict[str, Any],
    given: Any,
    start: int | None,
    stop: int | None,
) -> Any:
    """What Hugging Face's model returns, or the residual stream where the run stops."""
    if start is not None and start == stop:
        return given
    with ExitStack() as stack:
        if start is not None:
            stack.enter_context(_asleep(text.stack))
            stack.enter_context(started_at(text.layers, start, given))
        if stop is None:
            return run(**arguments)
        layers = list(text.layers)
        then = None if text.norm_place is None else text.norm_place.module
        with stopped_before(layers, stop, then=then, embed=text.entry) as stopped:
            run(**arguments)
    if stopped.stream is None:
        raise RuntimeError(f"Nothing came by at layer {stop} of {type(model.hf_model).__name__}.")
    return stopped.stream


def _bounds(n_layers: int, start: int | None, stop: int | None) -> tuple[int | None, int | None]:
    if start is not None:
        start = layer_number("start_at_layer", start, n_layers, last=n_layers - 1)
    if stop is not None:
        stop = layer_number("stop_at_layer", stop, n_layers, last=n_layers)
    if start is not None and stop is not None and stop < start:
        raise ValueError(
            f"Expected start_at_layer not behind stop_at_layer, got layers {start} and {stop}."
        )
    return start, stop


def _arguments_from(
    model: Any, text: Text, stream: Any, given: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """What to run, and with which arguments, when a run starts with a residual stream."""
    if text.has_encoder:
        raise ValueError(
            f"{model.cfg.architecture} cannot start at a layer: its decoder's first layer makes "
            "the position bias of all layers, and they read the encoder."
        )
    d_model = model.cfg.d_model
    fits = isinstance(stream, Tensor) and stream.ndim == 3 and stream.shape[-1] == d_model
    if not fits or not stream.is_floating_point():
        got = f"shape {list(stream.shape)}" if isinstance(stream, Tensor) else repr(stream)
        raise TypeError(
            f"Expected a residual stream [batch, pos, {d_model}] to start at a layer, got {got}."
        )
    hf_model = model.hf_model
    names = keywords_of(type(hf_model).forward) if model.architecture.media_parts() else ()
    beside = [name for name in names if name in _BESIDE_THE_STREAM]
    if not beside:
        head = text.head.module
        names = {*of_forward(head, ())} - {"input_ids", "return_dict", *_MEDIA}
        kept = {name: value for name, value in given.items() if name in names}
        return head, {**kept, "inputs_embeds": stream}
    tokens = given.get("input_ids")
    if tokens is None or tokens.shape != stream.shape[:2]:
        raise ValueError(
            f"The layers of {model.cfg.architecture} read more than the residual stream "
            f"({', '.join(beside)}, which come with the prompt): pass its inputs too, "
            "model(stream, start_at_layer=..., **inputs)."
        )
    dropped = () if _reads_media(model) else _MEDIA
    return hf_model, {name: value for name, value in given.items() if name not in dropped}


def _reads_media(model: Any) -> bool:
    """Whether layers read what the towers made besides what is in the stream."""
    crossed = any(hasattr(block, "cross_attn") for block in model.blocks)
    projector = model.architecture.projector
    return crossed or (projector is not None and projector.deepstack is not None)


@contextmanager
def _asleep(stack: Any) -> Iterator[None]:
    """The embedding's hook points see nothing: what enters the model is no embedding."""
    names = ("hook_embed", "hook_pos_embed")
    taps = [getattr(stack, name) for name in names if hasattr(stack, name)]
    try:
        for tap in taps:
            tap.asleep = True
        yield
    finally:
        for tap in taps:
            tap.asleep = False
