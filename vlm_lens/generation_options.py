"""Options of generation: TransformerLens' names for Hugging Face's, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformers import StoppingCriteria, StoppingCriteriaList, StopStringCriteria
from transformers.generation.configuration_utils import DYNAMIC_CACHE_IMPLEMENTATIONS

MAX_NEW_TOKENS = 20
_OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")


def hf_options(
    given: Mapping[str, Any],
    *,
    max_new_tokens: int | None,
    stop_at_eos: bool,
    use_past_kv_cache: bool | None,
    verbose: bool,
    tokenizer: Any,
) -> dict[str, Any]:
    """Hugging Face's options of `generate`.

    Args:
        given: Options under Hugging Face's names.
        max_new_tokens: At most so many; None for `MAX_NEW_TOKENS`, unless another option says it.
        stop_at_eos: Whether sequences end with the eos token.
        use_past_kv_cache: Hugging Face's `use_cache`; None leaves it as it is.
        verbose: Whether a bar shows the progress.
        tokenizer: The model's tokenizer, which `stop_strings` need; None where there is none.

    Raises:
        ValueError: Two options contradict each other.

    Example:
        >>> hf_options(
        ...     {"output_scores": True}, max_new_tokens=None, stop_at_eos=True,
        ...     use_past_kv_cache=False, verbose=False, tokenizer=None,
        ... )  # doctest: +NORMALIZE_WHITESPACE
        {'output_scores': True, 'max_new_tokens': 20, 'use_cache': False,
        'return_dict_in_generate': True}
    """
    options = dict(given)
    if max_new_tokens is None and not {"generation_config", "max_length"} & options.keys():
        max_new_tokens = MAX_NEW_TOKENS
    if max_new_tokens is not None:
        if type(max_new_tokens) is not int or max_new_tokens < 1:
            raise ValueError(f"Expected max_new_tokens of at least 1, got {max_new_tokens!r}.")
        options["max_new_tokens"] = max_new_tokens
    if not stop_at_eos:
        _set(options, "stop_at_eos", "eos_token_id", None)
    if use_past_kv_cache is not None:
        _set(options, "use_past_kv_cache", "use_cache", use_past_kv_cache)
    if any(options.get(name) for name in _OUTPUTS):
        options.setdefault("return_dict_in_generate", True)
    criteria = _further_criteria(options, tokenizer, max_new_tokens if verbose else None)
    if criteria:
        given_criteria = options.get("stopping_criteria") or []
        options["stopping_criteria"] = StoppingCriteriaList([*given_criteria, *criteria])
    return options


def _further_criteria(
    options: dict[str, Any], tokenizer: Any, shown: int | None
) -> list[StoppingCriteria]:
    """Criteria in place of options that need our tokenizer, and a bar for so many steps."""
    criteria: list[StoppingCriteria] = []
    strings = options.pop("stop_strings", None)
    if strings is not None:
        tokenizer = options.pop("tokenizer", tokenizer)
        if tokenizer is None:
            raise ValueError(
                f"stop_strings={strings!r} needs a tokenizer: pass tokenizer=..., or wrap the "
                "model with its processor."
            )
        criteria.append(StopStringCriteria(tokenizer, strings))
    if shown is not None:
        criteria.append(_ShowProgress(tqdm(total=shown, unit=" tokens")))
    return criteria


def _set(options: dict[str, Any], ours: str, theirs: str, value: Any) -> None:
    if theirs in options:
        raise ValueError(f"Expected {ours} or {theirs}, got both: they say the same.")
    options[theirs] = value


class _ShowProgress(StoppingCriteria):
    """Never stops: it is what Hugging Face calls after each step, in every way to generate."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def __call__(
        self, input_ids: Int[Tensor, "batch pos"], *_: Any, **__: Any
    ) -> Bool[Tensor, " batch"]:
        self._bar.update(1)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


ONE_STEP_A_TOKEN = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "cache_implementation": "dynamic",
    "use_cache": True,
    "return_dict_in_generate": True,
}
_OTHER_STEPS = (
    *("assistant_model", "prompt_lookup_num_tokens", "guidance_scale", "custom_generate"),
    *("past_key_values", "prefill_chunk_size", "inputs_embeds"),
)


def _asked(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with those that a `generation_config` among them asks for."""
    config = options.get("generation_config")
    return {**({} if config is None else config.to_diff_dict()), **options}


def check_one_step_a_token(options: Mapping[str, Any]) -> None:
    """Refuse what makes the steps of `generate` something else than the positions in order.

    Raises:
        ValueError: Something does.

    Example:
        >>> check_one_step_a_token({"num_beams": 2})
        Traceback (most recent call last):
        ValueError: generate_with_cache follows one sequence for each prompt: num_beams and \
num_return_sequences must be 1.
    """
    options = _asked(options)
    if (options.get("num_beams") or 1) > 1 or (options.get("num_return_sequences") or 1) > 1:
        raise ValueError(
            "generate_with_cache follows one sequence for each prompt: num_beams and "
            "num_return_sequences must be 1."
        )
    asked = [name for name in _OTHER_STEPS if options.get(name) is not None]
    if options.get("use_cache") is False:
        asked.append("use_cache=False")
    if asked:
        raise ValueError(
            f"generate_with_cache follows one step of the model for each new token: leave "
            f"{', '.join(asked)} out."
        )
    cache = options.get("cache_implementation") or "dynamic"
    if cache not in DYNAMIC_CACHE_IMPLEMENTATIONS:
        raise ValueError(
            "Expected a key-value cache that grows, since the last token is read too, got "
            f"cache_implementation={cache!r}: leave it out."
        )


_NO_STREAM = (
    *("num_beams", "assistant_model", "prompt_lookup_num_tokens", "custom_generate", "streamer"),
    *("return_dict_in_generate", "prefill_chunk_size", "inputs_embeds", *_OUTPUTS),
)


def check_streamed(options: Mapping[str, Any]) -> None:
    """Refuse what cannot be handed out token by token.

    Raises:
        ValueError: Something cannot.
    """
    options = _asked(options)
    asked = [name for name in _NO_STREAM if options.get(name) not in (None, False)]
    if options.get("num_beams") == 1:
        asked.remove("num_beams")
    if asked:
        raise ValueError(
            f"generate_stream hands out tokens as they come, one a step: leave "
            f"{', '.join(asked)} out."
        )
