"""Keywords: which ones a call knows, and an answer with the nearest names to any other.

Hugging Face's `forward` and `generate` swallow what they do not know, so that a misspelt option
would do nothing, without a word. What is known is ours, and what Hugging Face's own signatures
name.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

from torch import nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.utils.generic import TransformersKwargs

from vlm_lens.hooks.names import nearest_names

P = ParamSpec("P")
R = TypeVar("R")

# Options of TransformerLens that are absent, and what there is in their place.
_IN_PLACE_OF = {
    "past_kv_cache": "past_key_values=, with a cache of transformers",
    "shortformer_pos_embed": "nothing, since no model here has such positions",
    "freq_penalty": "repetition_penalty= or logits_processor=",
    "return_cache": "generate_with_cache",
    "return_input_tokens": "return_type='tokens', which holds the prompt",
    **dict.fromkeys(
        ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"),
        "nothing, since weights are never converted",
    ),
}
# Taken by `generate` out of its **kwargs before it looks at any of them.
_OF_GENERATE = ("tokenizer", "assistant_tokenizer", "trust_remote_code")
# The same of `from_pretrained`.
_OF_LOADING = (
    *("state_dict", "proxies", "tqdm_class", "output_loading_info", "dtype", "torch_dtype"),
    *("device_map", "max_memory", "offload_folder", "offload_buffers", "quantization_config"),
    *("subfolder", "variant", "adapter_kwargs", "adapter_name", "generation_config", "gguf_file"),
    *("distributed_config", "device_mesh", "tp_plan", "tp_size", "trust_remote_code"),
    *("allow_all_kernels", "use_kernels", "kernel_config", "key_mapping", "attn_implementation"),
    *("experts_implementation", "low_cpu_mem_usage", "offload_state_dict"),
)


def refuse_unknown(call: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse keywords that a call does not know, before it does anything.

    Args:
        call: What was called, for the message.
        given: The keywords that came.
        known: Those that the call knows.

    Raises:
        TypeError: One is not known; the message lists the nearest names.

    Example:
        >>> refuse_unknown("forward", ["retrun_type"], ["return_type", "prepend_bos"])
        Traceback (most recent call last):
        TypeError: forward() got an unexpected keyword 'retrun_type'. Nearest: return_type.
    """
    names = set(known) - {"self"}
    for name in given:
        if name in names:
            continue
        near = nearest_names(name, sorted(names))
        hint = f" Nearest: {', '.join(near)}." if near else f" Known: {', '.join(sorted(names))}."
        if name in _IN_PLACE_OF:
            hint = f" In its place there is {_IN_PLACE_OF[name]}."
        raise TypeError(f"{call}() got an unexpected keyword {name!r}.{hint}")


@functools.cache  # asked in every call
def keywords_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """The names that a function's signature lists.

    Example:
        >>> keywords_of(refuse_unknown)
        ('call', 'given', 'known')
    """
    parameters = inspect.signature(function).parameters.values()
    return tuple(p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL))


def knows_its_keywords(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function that takes named options only, so that its answer lists the nearest.

    Example:
        >>> @knows_its_keywords
        ... def prepare(*, text, images=None): ...
        >>> prepare(text="red", image=None)
        Traceback (most recent call last):
        TypeError: prepare() got an unexpected keyword 'image'. Nearest: images.
    """
    known = keywords_of(function)

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        refuse_unknown(function.__name__, kwargs, known)
        return function(*args, **kwargs)

    return wrapper


def of_forward(hf_model: Any, text_parts: Iterable[nn.Module]) -> list[str]:
    """What a Hugging Face model's forward takes by keyword.

    Args:
        hf_model: The model.
        text_parts: The modules, from the outermost to the text model, that its forward hands its
            further keywords to.
    """
    # An instance's forward may be wrapped (accelerate does so); its class has the signature.
    modules = (hf_model, *text_parts)
    named = [name for module in modules for name in keywords_of(type(module).forward)]
    # `return_dict` only says in which shape Hugging Face returns what is read off here.
    return [*named, *TransformersKwargs.__optional_keys__, "return_dict"]


def of_generate(hf_model: Any, text_parts: Iterable[nn.Module]) -> list[str]:
    """What a Hugging Face model's `generate` takes by keyword, for its loop and for its forward."""
    generate: Any = vars(GenerationMixin)["generate"]
    loop = [*keywords_of(generate), *vars(GenerationConfig()), *_OF_GENERATE]
    return [*loop, *of_forward(hf_model, text_parts)]


def of_loading(config: Any) -> list[str]:
    """What a Hugging Face `from_pretrained` takes: its own options, and the config's fields."""
    return [*keywords_of(PreTrainedModel.from_pretrained), *_OF_LOADING, *vars(config)]
