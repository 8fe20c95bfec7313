"""Adapters of peft: which module computes, and with which weights, where an adapter is on a layer.

Hooks need none of this: they sit on whatever is at a layer's place, the adapter included.
"""

from __future__ import annotations

import copy
import sys
from typing import Any

from torch import Tensor, nn


def unwrapped(hf_model: Any) -> Any:
    """The Hugging Face model in what `torch.compile` or peft made of it.

    Args:
        hf_model: A model, perhaps wrapped.

    Raises:
        TypeError: What peft does with the model is not in the model itself (prompt tuning).

    Example:
        >>> import torch
        >>> linear = nn.Linear(2, 2)
        >>> unwrapped(torch.compile(linear)) is linear
        True
    """
    if isinstance(hf_model, nn.Module):
        hf_model = hf_model._modules.get("_orig_mod", hf_model)
    peft = sys.modules.get("peft")
    if peft is None or not isinstance(hf_model, peft.PeftModel):
        return hf_model
    model: Any = hf_model
    if model.active_peft_config.is_prompt_learning:
        raise TypeError(
            f"Expected a model that holds its adapters, but {model.active_peft_config.peft_type} "
            "adds positions in front of the prompt, outside of the model. Pass the model itself to "
            "look at it without them: HookedVLM(peft_model.get_base_model())."
        )
    return model.get_base_model()


def running(module: Any) -> Any:
    """The module that computes what another one gives: of a trained copy and an original, one.

    Args:
        module: Any module; peft's `modules_to_save` are wrapped by one that chooses.

    Example:
        >>> linear = nn.Linear(2, 2)
        >>> running(linear) is linear
        True
    """
    peft = sys.modules.get("peft")
    if peft is not None and isinstance(module, peft.utils.TrainableTokensWrapper):
        return module.token_adapter
    if peft is None or not isinstance(module, peft.utils.ModulesToSaveWrapper):
        return module
    chosen = [name for name in module.active_adapters if name in module.modules_to_save]
    whole = len(chosen) == len(module.active_adapters)
    if module.disable_adapters or not chosen or not whole:
        return module.original_module
    return module.modules_to_save[chosen[0]]


def beneath(module: Any) -> Any:
    """The layer beneath the adapters on it, for its sizes and its kind.

    Args:
        module: A layer, with or without adapters.

    Example:
        >>> beneath(nn.Linear(2, 3)).out_features
        3
    """
    module = running(module)
    return module.get_base_layer() if adapted(module) else module


def adapted(module: Any) -> bool:
    """Whether an adapter (LoRA or another one of peft's) is on a layer."""
    tuners = sys.modules.get("peft.tuners.tuners_utils")
    return tuners is not None and isinstance(module, tuners.BaseTunerLayer)


def effective(module: Any) -> Any:
    """A layer with the weights that it computes with, adapters included.

    Args:
        module: A layer, with or without adapters.

    Returns:
        The layer itself, or, with adapters, a copy of the layer beneath them with the active ones
        merged in, as peft's `merge_and_unload` leaves it; the model stays as it is.

    Raises:
        TypeError: An adapter is of a kind that is no change of weights.

    Example:
        >>> linear = nn.Linear(2, 2)
        >>> effective(linear) is linear
        True
    """
    module = running(module)
    if not adapted(module):
        return module
    tuner = module
    base = tuner.get_base_layer()
    merged, active = set(tuner.merged_adapters), set(tuner.active_adapters)
    wanted = set() if tuner.disable_adapters else active & tuner._get_available_adapters()
    if merged == wanted or not _in_floats(base.weight):
        return base
    apart = copy.deepcopy(tuner)
    try:
        if merged - wanted:
            apart.unmerge()
        if wanted:
            apart.merge(adapter_names=sorted(wanted))
    except (NotImplementedError, ValueError) as error:
        raise TypeError(
            f"Expected adapters that can be merged into the weights, but {type(tuner).__name__} "
            f"cannot: {error}. Its activations can be hooked; its weights cannot be read."
        ) from error
    return apart.get_base_layer()


def _in_floats(weight: Any) -> bool:
    if not isinstance(weight, Tensor) or weight.is_meta:
        return False
    return weight.is_floating_point() and weight.element_size() > 1
