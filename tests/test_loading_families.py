"""Loading as it is done with real checkpoints: every family, shards, dtypes, devices, 8 bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BitsAndBytesConfig

from benchmarks.models import build as build_subject
from tests.conftest import assert_no_hooks
from tests.families import FAMILIES, KINDS, build, example
from vlm_lens import HookedVLM
from vlm_lens import loading as loading_module
from vlm_lens.architectures.components import weight_of

OFFLOADED = {"model.visual": "cpu", "model.language_model": "disk", "lm_head": "cpu"}


def save(name: str, folder: Path, **options: Any) -> tuple[Any, Any]:
    hf, processor = build(name)
    hf.save_pretrained(folder, **options)
    processor.save_pretrained(folder)
    return hf, processor


@pytest.mark.sampled
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_loads_as_it_was_saved(name: str, tmp_path: Path):
    """The model, its processor, and the record that its text model decides on."""
    hf, processor = save(name, tmp_path)
    model = HookedVLM.from_pretrained(tmp_path)
    assert type(model.hf_model) is type(hf)
    assert type(model.processor) is type(processor)
    assert not model.training
    assert model.cfg.is_encoder_decoder == name.endswith("t5")
    if name == "kosmos2":  # of the class and not saved; 64 in the one checkpoint there is
        model.processor.num_image_tokens = processor.num_image_tokens
    for kind in KINDS[name]:
        inputs = example(name, model.hf_model, model.processor, kind)
        with torch.no_grad():
            expected = hf(**example(name, hf, processor, kind)).logits
            assert torch.equal(model(inputs), expected), kind


@pytest.mark.full
@pytest.mark.parametrize("name", ["gemma3", "instructblip-t5", "qwen2_audio"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_shards_load_in_half_precision(name: str, dtype: torch.dtype, tmp_path: Path):
    hf, processor = save(name, tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    model = HookedVLM.from_pretrained(tmp_path, dtype=dtype)
    assert model.W_E.dtype == model.cfg.dtype == dtype
    inputs = example(name, hf, processor, "image")
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    with torch.no_grad():
        expected = model.hf_model(**inputs).logits
        assert torch.equal(expected, model.run_with_cache(inputs, names_filter="*")[0])
        assert (expected - hf(**example(name, hf, processor, "image")).logits).abs().max() < 0.2


def test_a_configuration_that_names_no_class_leaves_the_choice_to_transformers(tmp_path: Path):
    save("qwen2_audio", tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    del config["architectures"]
    file.write_text(json.dumps(config))
    model = HookedVLM.from_pretrained(tmp_path)
    assert model.cfg.architecture == "Qwen2AudioForConditionalGeneration"


@pytest.mark.sampled
@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}, OFFLOADED])
def test_a_model_that_a_device_map_spreads_out_works_as_a_whole_one(
    device_map: Any, tmp_path: Path
):
    hf, processor = save("qwen2_vl", tmp_path)
    model = HookedVLM.from_pretrained(
        tmp_path, device_map=device_map, offload_folder=tmp_path / "offloaded"
    )
    inputs = example("qwen2_vl", hf, processor, "image")
    with torch.no_grad():
        logits, cache = model.run_with_cache(inputs, names_filter="*")
        assert torch.equal(logits, hf(**inputs).logits)
        changed = model.run_with_hooks(
            inputs, fwd_hooks=[("blocks.1.mlp.hook_post", lambda t, hook: t * 0)]
        )
    assert not torch.equal(changed, logits)
    assert cache["blocks.0.mlp.hook_post"].abs().max() > 0
    assert model.prepare(text="what color").input_ids.device.type == model.cfg.device == "cpu"
    assert model.generate(inputs) == HookedVLM(hf, processor=processor).generate(inputs)
    model.reset_hooks()
    assert_no_hooks(model)


def test_weights_that_are_offloaded_are_not_read(tmp_path: Path):
    save("qwen2_vl", tmp_path)
    model: Any = HookedVLM.from_pretrained(
        tmp_path, device_map=OFFLOADED, offload_folder=tmp_path / "offloaded"
    )
    attention, mlp = model.blocks[0].attn, model.blocks[0].mlp
    for read in (
        lambda: model.W_E,
        lambda: mlp.W_in,
        lambda: attention.b_Q,
        lambda: model.ln_final.w,
        lambda: model.tokens_to_residual_directions(5),
    ):
        with pytest.raises(TypeError, match="not in memory.*without offloading"):
            read()


def test_a_device_and_a_device_map_contradict_each_other(tmp_path: Path):
    with pytest.raises(ValueError, match="Expected device or device_map, got both"):
        HookedVLM.from_pretrained(tmp_path, device="cpu", device_map="auto")


def test_a_gated_model_says_how_to_get_in(monkeypatch: pytest.MonkeyPatch):
    def gated(*_: Any, **__: Any) -> None:
        raise OSError("You are trying to access a gated repo.\nMake sure to have access to it.")

    monkeypatch.setattr(loading_module, "check_hub_answers", lambda *_, **__: None)
    monkeypatch.setattr(loading_module.AutoConfig, "from_pretrained", gated)
    with pytest.raises(OSError, match="Could not load 'a/b': .*gated repo.*hf auth login"):
        HookedVLM.from_pretrained("a/b")


# Quantised models -------------------------------------------------------------------------------


class EightBit(nn.Module):
    """A linear layer of int8 weights and a scale for each output, as `Linear8bitLt` keeps them."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.scale = linear.weight.detach().abs().amax(1) / 127
        rounded = (linear.weight.detach() / self.scale[:, None]).round().to(torch.int8)
        self.weight = nn.Parameter(rounded, requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype) * self.scale[:, None], self.bias)


def quantise(hf: Any) -> Any:
    for module in list(hf.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear and child is not hf.lm_head:
                setattr(module, name, EightBit(child))
    return hf


def assert_hooks_work_and_weights_do_not(model: Any, inputs: dict[str, Tensor], kept: str) -> None:
    with torch.no_grad():
        expected = model.hf_model(**inputs).logits
        logits, cache = model.run_with_cache(inputs, names_filter="*")
        assert torch.equal(logits, expected)
        assert set(cache.keys()) == set(model.hook_dict)
        for name in ("vision_encoder.blocks.0.mlp.hook_post", "blocks.0.attn.hook_q"):
            hook = (name, lambda t, hook: t * 0)
            assert not torch.equal(model.run_with_hooks(inputs, fwd_hooks=[hook]), expected)
    _, cache = model.generate_with_cache(
        inputs, names_filter="blocks.0.mlp.hook_post", max_new_tokens=2, min_new_tokens=2
    )
    assert cache["post", 0].shape[1] == inputs["input_ids"].shape[1] + 2
    for weight in ("W_in", "W_Q", "W_O", "b_in"):
        with pytest.raises(TypeError, match=f"keeps {kept}: the model is quantised.*without"):
            getattr(model, weight)
    assert model.W_E.is_floating_point()


def test_hooks_work_on_layers_of_eight_bits():
    """With a stand-in for the layers of bitsandbytes, which is not installed everywhere."""
    hf, processor = build("qwen2_vl")
    inputs = example("qwen2_vl", hf, processor, "image")
    model = HookedVLM(quantise(hf), processor=processor)
    assert_hooks_work_and_weights_do_not(model, inputs, "torch.int8")


def test_eight_bit_floats_are_quantised_weights_too():
    """They are floating-point numbers, but not without their scales."""
    linear = nn.Linear(4, 4)
    linear.weight = nn.Parameter(linear.weight.detach().to(torch.float8_e4m3fn))
    with pytest.raises(TypeError, match="keeps torch.float8_e4m3fn: the model is quantised"):
        weight_of(linear)


@pytest.mark.parametrize(
    ("bits", "kept"), [({"load_in_8bit": True}, "torch.int8"), ({"load_in_4bit": True}, "uint8")]
)
def test_models_quantised_by_bitsandbytes(bits: dict[str, Any], kept: str, tmp_path: Path):
    """Runs where bitsandbytes is installed."""
    pytest.importorskip("bitsandbytes")
    subject = build_subject("small")  # widths that are whole blocks of 64
    subject.hf_model.to(torch.bfloat16).save_pretrained(tmp_path)
    hf = type(subject.hf_model).from_pretrained(
        tmp_path, quantization_config=BitsAndBytesConfig(**bits), dtype=torch.bfloat16
    )
    pixels = subject.inputs["pixel_values"].to(torch.bfloat16)
    inputs = {**subject.inputs, "pixel_values": pixels}
    assert_hooks_work_and_weights_do_not(HookedVLM(hf), inputs, f".*{kept}")
