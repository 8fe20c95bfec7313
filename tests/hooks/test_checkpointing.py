"""Gradients under gradient checkpointing, where blocks are computed again in backward."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from tests.conftest import assert_no_hooks
from tests.families import MODELS, build, example
from tests.tiny import Tiny, build_tiny
from vlm_lens import HookedVLM
from vlm_lens.architectures.components import HookedBlock

EDITED = (
    "*hook_post",
    "*hook_resid_mid",
    "*attn.hook_pattern",
    "*ln1.hook_scale",
    "*hook_resid_pre",
)


def edits(model: HookedVLM) -> list[Any]:
    """Something of everything, in every stack of the model."""
    parallel = any(module.parallel for module in model.modules() if isinstance(module, HookedBlock))
    globs = [glob for glob in EDITED if not (parallel and glob.endswith("resid_mid"))]
    return [(glob, lambda x, hook: x * 1.25) for glob in globs]


def gradients(hf: Any, processor: Any, inputs: Any) -> dict[str, torch.Tensor]:
    """Of the edited model; backward runs after the block of hooks, and after another run."""
    model = HookedVLM(hf, processor=processor)
    torch.manual_seed(0)
    logits = model.run_with_hooks(inputs, fwd_hooks=edits(model))
    with torch.no_grad():
        model.run_with_cache(inputs, names_filter="*hook_mlp_out")
    (logits.float() * torch.linspace(-1, 1, logits.numel()).view(logits.shape)).sum().backward()
    assert_no_hooks(model)
    return {name: p.grad for name, p in hf.named_parameters() if p.grad is not None}


def without_dropout(hf: Any) -> Any:
    """In training mode, which checkpointing needs, but with the same result every time."""
    hf.train()
    for module in hf.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout", "activation_dropout", "layerdrop"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return hf


@pytest.mark.sampled
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_the_edited_forward(name: str):
    hf, processor = build(name)
    inputs = example(name, hf, processor, "image")
    hf = without_dropout(hf)
    checkpointed = copy.deepcopy(hf)
    checkpointed.gradient_checkpointing_enable()
    right, found = gradients(hf, processor, inputs), gradients(checkpointed, processor, inputs)
    assert found.keys() == right.keys()
    for parameter, gradient in right.items():
        error = (found[parameter] - gradient).norm()
        assert error <= 1e-3 * gradient.norm() + 1e-6, parameter


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("hooks", ["other hooks", "the same hooks", "gradient hooks"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_backward_under_whatever_hooks_are_set_then(hooks: str, reentrant: bool):
    def gradient(checkpointing: bool) -> tuple[torch.Tensor, list[float]]:
        tiny = build_tiny("clip-llama")
        without_dropout(tiny.hf)
        if checkpointing:
            tiny.hf.gradient_checkpointing_enable({"use_reentrant": reentrant})
            tiny.hf.enable_input_require_grads()
        return _gradient(tiny, hooks)

    (right, seen), (found, seen_again) = gradient(False), gradient(True)
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)
    assert seen == pytest.approx(seen_again, rel=1e-4)


def _gradient(tiny: Tiny, hooks: str) -> tuple[torch.Tensor, list[float]]:
    name, seen = "blocks.1.mlp.hook_post", []
    edit = (name, lambda x, hook: x * 3)
    inputs = tiny.model.prepare(text="what color ?", answer="red")
    if hooks == "gradient hooks":
        look = (name, lambda g, hook: seen.append(float(g.norm())))
        with tiny.model.hooks([edit], [look]):
            tiny.model(inputs, return_type="loss").backward()
    else:
        loss = tiny.model.run_with_hooks(inputs, fwd_hooks=[edit], return_type="loss")
        other = [edit] if hooks == "the same hooks" else [(name, lambda x, hook: x * 0)]
        with tiny.model.hooks(other):
            loss.backward()
    gradient = tiny.hf.model.language_model.layers[1].mlp.down_proj.weight.grad
    assert gradient is not None
    assert_no_hooks(tiny.model)
    return gradient, seen
