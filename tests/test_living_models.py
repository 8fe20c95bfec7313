"""Models that change after they were wrapped: adapters, vocabularies, dtypes, parts, compilation.

What the hook points and the weights show is held against a model that was changed first and wrapped
afterwards, or against what the changed modules themselves compute.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig
from torch import nn

from tests.conftest import assert_no_hooks
from tests.families import MODELS, build, example
from tests.tiny import Tiny, build_tiny
from vlm_lens import HookedVLM, NeuronSet
from vlm_lens.analyses import direct_effect
from vlm_lens.architectures.components import Component
from vlm_lens.architectures.components.component import Projection
from vlm_lens.hooks import ArchitectureError, Place
from vlm_lens.results.provenance import digest_of_weights
from vlm_lens.verification import VerificationError

WEIGHTS = ("W_E", "W_U", "W_in", "W_gate", "W_out", "W_Q", "W_K", "W_V", "W_O", "b_in", "b_out")
EVERYWHERE: dict[str, Any] = {"r": 4, "init_lora_weights": False}


def linear_layers(hf: nn.Module) -> list[str]:
    return [name for name, module in hf.named_modules() if type(module) is nn.Linear]


def add_lora(hf: Any, **options: Any) -> None:
    """An adapter on every linear layer, that does something."""
    torch.manual_seed(1)
    names = {"target_modules": linear_layers(hf)}
    hf.add_adapter(LoraConfig(**{**EVERYWHERE, **names, **options}))
    hf.eval()


def merged(hf: Any) -> Any:
    """The same model with its adapters merged in, by peft itself."""
    apart = copy.deepcopy(hf)
    for name, module in list(apart.named_modules()):
        if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer):
            base = module.get_base_layer()
            base.weight = nn.Parameter(base.weight.detach().clone())  # it may be tied to another
            module.merge()
            apart.set_submodule(name, base)
    apart._hf_peft_config_loaded = False
    return apart


def shown_weights(model: HookedVLM) -> dict[str, torch.Tensor]:
    """Every weight that some component shows."""
    return {
        f"{name}.{weight}": projection.weight.detach()
        for name, component in model.named_modules()
        if isinstance(component, Component)
        for weight, projection in component.projections.items()
    } | {name: getattr(model, name).detach() for name in ("W_E", "W_U", "b_U")}


@pytest.mark.full
@pytest.mark.parametrize("name", MODELS)
def test_a_lora_model_is_what_it_is_after_merging(name: str):
    """On every linear layer of every family; added after the model was wrapped."""
    hf, processor = build(name)
    model = HookedVLM(hf, processor=processor)
    plain = shown_weights(model)
    add_lora(hf)
    inputs = example(name, hf, processor, "image")
    alone = HookedVLM(merged(hf), processor=processor)
    expected = shown_weights(alone)
    for weight, shown in shown_weights(model).items():
        assert torch.equal(shown, expected[weight]), weight
    assert not all(torch.equal(plain[weight], expected[weight]) for weight in plain)
    with torch.no_grad():
        logits = alone(inputs)
        assert (model(inputs) - logits).abs().max() < 1e-3 * (logits.abs().max() + 1)
    assert model.verify(inputs).n_weights > 5
    assert_no_hooks(model)


def wrapped_then(change: Callable[[Any], None]) -> tuple[HookedVLM, Any]:
    tiny = build_tiny("clip-llama")
    change(tiny.hf)
    return tiny.model, tiny.inputs("image")


@pytest.mark.full
def test_directions_and_direct_effects_of_a_lora_model():
    model, inputs = wrapped_then(add_lora)
    alone = HookedVLM(merged(model.hf_model), processor=model.processor)
    with torch.no_grad():
        directions = model.tokens_to_residual_directions("red")
        assert torch.equal(directions, alone.tokens_to_residual_directions("red"))
    found, expected = direct_effect(model, inputs).scores, direct_effect(alone, inputs).scores
    for point in expected:
        torch.testing.assert_close(found[point], expected[point], rtol=1e-3, atol=1e-4)


ADAPTERS = {
    "lora with bias": LoraConfig(target_modules=["down_proj"], bias="lora_only", **EVERYWHERE),
    "lora bias": LoraConfig(target_modules=["fc1", "fc2"], lora_bias=True, **EVERYWHERE),
    "dora": LoraConfig(target_modules=["down_proj", "lm_head"], use_dora=True, **EVERYWHERE),
    "rslora": LoraConfig(target_modules=["up_proj", "v_proj"], use_rslora=True, **EVERYWHERE),
    "embedding": LoraConfig(target_modules=["embed_tokens", "o_proj"], **EVERYWHERE),
    "modules to save": LoraConfig(
        target_modules=["q_proj"], modules_to_save=["lm_head", "norm", "linear_1"], **EVERYWHERE
    ),
    "ia3": peft.IA3Config(
        target_modules=["k_proj", "down_proj"],
        feedforward_modules=["down_proj"],
        init_ia3_weights=False,
    ),
    "loha": peft.LoHaConfig(target_modules=["gate_proj"], r=4, init_weights=False),
}


@pytest.mark.sampled
@pytest.mark.parametrize("kind", ADAPTERS)
def test_every_kind_of_adapter(kind: str):
    """Wrapped after the adapter, which peft may have around the model."""
    tiny = build_tiny("clip-llama")
    torch.manual_seed(1)
    adapter = peft.get_peft_model(tiny.hf, ADAPTERS[kind]).eval()
    with torch.no_grad():
        for parameter_name, parameter in adapter.named_parameters():
            if "modules_to_save" in parameter_name:
                parameter.mul_(1.5)
    model, inputs = HookedVLM(adapter, processor=tiny.processor), tiny.inputs("image")
    with torch.no_grad():
        assert torch.equal(model(inputs), adapter(**inputs).logits)
    model.verify(inputs)
    whole = HookedVLM(copy.deepcopy(adapter).merge_and_unload(), processor=tiny.processor)
    for weight in WEIGHTS:
        torch.testing.assert_close(getattr(model, weight), getattr(whole, weight))


@pytest.mark.sampled
@pytest.mark.parametrize("state", ["disabled", "merged", "merged and disabled", "second adapter"])
def test_weights_follow_the_state_of_the_adapters(state: str):
    model, inputs = wrapped_then(add_lora)
    hf, plain = model.hf_model, HookedVLM(build_tiny("clip-llama").hf)
    tuners = [m for m in hf.modules() if isinstance(m, peft.tuners.tuners_utils.BaseTunerLayer)]
    for tuner in tuners if "merged" in state else ():
        tuner.merge()
    if "disabled" in state:
        hf.disable_adapters()
    if state == "second adapter":
        hf.add_adapter(LoraConfig(target_modules=["down_proj"], **EVERYWHERE), "second")
        hf.set_adapter("second")
        hf.eval()
    same = torch.allclose(model.W_in, plain.W_in, atol=1e-5)
    assert same == (state != "merged")
    assert torch.allclose(model.W_out, plain.W_out, atol=1e-5) == ("disabled" in state)
    model.verify(inputs)


def test_prompt_tuning_is_refused():
    tiny = build_tiny("clip-llama")
    config = peft.PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=2)
    tuned = peft.PeftModelForFeatureExtraction(tiny.hf.model.language_model, config)
    with pytest.raises(TypeError, match=r"PROMPT_TUNING adds positions.*get_base_model"):
        HookedVLM(tuned)


def test_hooks_that_are_set_follow_a_layer_that_is_replaced():
    tiny = build_tiny("clip-llama")
    names = ["blocks.1.mlp.hook_pre", "blocks.1.attn.hook_pattern", "ln_final.hook_scale"]
    with torch.no_grad(), tiny.model.hooks([(names, lambda x, hook: x * 0)]):
        tiny.model("red")
        add_lora(tiny.hf)
        cached = tiny.model.run_with_cache("red", names_filter="blocks.1.mlp.hook_post")[1]
    assert cached["blocks.1.mlp.hook_post"].abs().max() == 0
    assert_no_hooks(tiny.model)


def test_a_block_that_is_replaced():
    tiny = build_tiny("clip-llama")
    other = build_tiny("clip-llama").hf
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
        tiny.hf.model.language_model.layers[1] = other.model.language_model.layers[1]
        tiny.hf.model.vision_tower = other.model.vision_tower
    tiny.model.verify(tiny.inputs("image"))
    assert torch.equal(
        tiny.model.W_in[1], other.model.language_model.layers[1].mlp.up_proj.weight.T
    )


class Int8Linear(nn.Linear):
    """A quantised layer, as libraries for that put it into a model that is there."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False)
        self.scale = linear.weight.detach().abs().max() / 127
        whole = (linear.weight.detach() / self.scale).round().to(torch.int8)
        self.weight = nn.Parameter(whole, requires_grad=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(input, self.weight.float() * self.scale)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("by", ["another layer", "torch"])
def test_layers_that_are_quantised_after_wrapping(by: str):
    tiny = build_tiny("clip-llama")
    mlp = tiny.hf.model.language_model.layers[1].mlp
    if by == "torch":
        torch.ao.quantization.quantize_dynamic(mlp, {nn.Linear}, inplace=True)
    else:
        mlp.down_proj, mlp.gate_proj = Int8Linear(mlp.down_proj), Int8Linear(mlp.gate_proj)
    seen: list[torch.Tensor] = []
    mlp.down_proj.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        _, cache = tiny.model.run_with_cache("red", names_filter="blocks.1.hook_mlp_out")
    assert torch.equal(cache["mlp_out", 1], seen[0])
    with pytest.raises(TypeError, match="the model is quantised"):
        _ = tiny.model.blocks[1].mlp.W_out
    if by == "another layer":  # torch's own take no gradient
        unreadable = tiny.model.verify(tiny.inputs("image")).unreadable
        assert {"blocks.1.mlp.W_out", "blocks.1.mlp.W_gate"} == set(unreadable)


def test_a_part_that_is_gone_is_an_error_that_says_so():
    tiny = build_tiny("clip-llama")
    del tiny.hf.model.language_model.layers[2]
    with pytest.raises(ArchitectureError, match=r"layers\.2.*taken apart after it was wrapped"):
        tiny.model.run_with_cache("red", names_filter="blocks.2.hook_mlp_out")
    with pytest.raises(ArchitectureError, match="wrapped again"):
        tiny.model.hook_dict["blocks.2.hook_mlp_out"].add_hook(lambda x, hook: None)
    assert_no_hooks(tiny.model)


@pytest.mark.sampled
@pytest.mark.parametrize("name", MODELS)
def test_a_larger_vocabulary(name: str):
    hf, processor = build(name)
    model = HookedVLM(hf, processor=processor)
    before = model.cfg.d_vocab
    hf.resize_token_embeddings(before + 3, mean_resizing=False)
    inputs = example(name, hf, processor, "image")
    assert model.cfg.d_vocab == model.W_E.shape[0] == before + 3
    assert model(inputs).shape[-1] == model.W_U.shape[1]
    model.verify(inputs)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.half(),
        lambda model: model.bfloat16(),
        lambda model: model.double(),
        lambda model: model.to(torch.float16),
        lambda model: model.hf_model.to(torch.bfloat16),
        lambda model: model.hf_model.double(),
    ],
)
def test_cfg_says_what_the_model_is_now(change: Callable[[HookedVLM], Any]):
    tiny = build_tiny("clip-llama")
    cfg = tiny.model.cfg
    change(tiny.model)
    assert tiny.model.cfg is cfg
    dtype = tiny.hf.lm_head.weight.dtype
    assert tiny.model.cfg.dtype == tiny.model.cfg.vision_encoder.dtype == dtype
    assert tiny.model.to("meta").cfg.device == "meta"
    assert dtype != torch.float32


def compiled_whole(hf: Any) -> None:
    hf.compile(backend="eager")


def compiled_forward(hf: Any) -> None:
    hf.forward = torch.compile(hf.forward, backend="eager")


def compiled_layers(hf: Any) -> None:
    for layer in hf.model.language_model.layers:
        layer.compile(backend="eager")


def compiled_part(hf: Any) -> None:
    layers = hf.model.language_model.layers
    layers[1] = torch.compile(layers[1], backend="eager")
    layers[2].mlp = torch.compile(layers[2].mlp, backend="eager")


@pytest.mark.full
@pytest.mark.parametrize(
    "compiled", [compiled_whole, compiled_forward, compiled_layers, compiled_part]
)
def test_hooks_fire_in_a_compiled_model(compiled: Callable[[Any], None]):
    tiny = build_tiny("clip-llama")
    neurons = NeuronSet.from_indices({f"blocks.{i}.mlp.hook_post": range(64) for i in range(3)})
    inputs = tiny.inputs("text")  # of an image, the whole takes 15 s to compile
    with torch.no_grad():
        plain, [right, answer] = tiny.model(inputs), ablated(tiny, neurons, inputs)
        compiled(tiny.hf)
        assert torch.allclose(tiny.model(inputs), plain, atol=1e-4)
        found = ablated(tiny, neurons, inputs)
        assert torch.equal(found[0], right)
        assert found[1] == answer
        _, cache = tiny.model.run_with_cache(inputs)
        assert set(tiny.model.hook_dict) >= set(cache)
        assert len([name for name in cache if name.endswith("hook_post")]) == 3
    tiny.model.verify(tiny.inputs("image"))
    assert_no_hooks(tiny.model)


def ablated(tiny: Tiny, neurons: NeuronSet, inputs: Any) -> tuple[torch.Tensor, str]:
    with tiny.model.hooks(neurons.ablate()):
        return tiny.model(inputs), tiny.model.generate(inputs, max_new_tokens=3)


def test_a_compiled_model_is_wrapped_as_what_it_was():
    tiny = build_tiny("clip-llama")
    model = HookedVLM(torch.compile(tiny.hf, backend="eager"), processor=tiny.processor)
    assert model.hf_model is tiny.hf


class Stale(HookedVLM):
    """As it was when the model was wrapped."""

    @property
    def cfg(self) -> Any:
        return self._cfg


def test_verify_finds_a_stale_configuration():
    tiny = build_tiny("clip-llama")
    stale = Stale(tiny.hf, processor=tiny.processor)
    tiny.hf.double()
    with pytest.raises(
        VerificationError, match=r"cfg\.dtype is torch\.float32, not torch\.float64"
    ):
        stale.verify(tiny.inputs("image").to(torch.float64))


@pytest.mark.full
def test_verify_finds_weights_that_the_model_does_not_run_with():
    """As those of a linear layer beneath an adapter would be."""
    tiny = build_tiny("clip-llama")
    add_lora(tiny.hf)
    projections = tiny.model.blocks[1].mlp.projections
    beneath = Place(projections["W_out"].module.base_layer)
    beneath.module.register_forward_hook(lambda module, args, output: output * 2)
    projections["W_out"] = Projection(beneath)
    with pytest.raises(
        VerificationError, match=r"blocks\.1\.mlp\.W_out: the model did not compute"
    ):
        tiny.model.verify(tiny.inputs("image"))


@pytest.mark.full
def test_an_adapter_from_a_folder(tmp_path: Path):
    trained, tiny = build_tiny("clip-llama"), build_tiny("clip-llama")
    add_lora(trained.hf)
    trained.hf.save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds an adapter.*load_adapter"):
        HookedVLM.from_pretrained(tmp_path)
    tiny.hf.load_adapter(str(tmp_path))
    tiny.hf.eval()
    assert torch.equal(tiny.model.W_out, trained.model.W_out)
    tiny.model.verify(tiny.inputs("image"))


@pytest.mark.full
@pytest.mark.parametrize("change", [add_lora, lambda hf: hf.lm_head.weight.data.mul_(2)])
def test_checkpoints_tell_a_model_from_itself_with_an_adapter(change: Callable[[Any], None]):
    hf = build_tiny("clip-llama").hf
    digests = [digest_of_weights(hf)]
    change(hf)
    digests += [digest_of_weights(hf), digest_of_weights(hf)]
    if change is add_lora:
        hf.disable_adapters()
        digests.append(digest_of_weights(hf))
    assert digests[1] == digests[2]
    assert len(set(digests)) == len(digests) - 1
