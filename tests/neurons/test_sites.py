"""Sites exist, have neurons, and leave no linear layer of an MLP out, in every family."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.families import FAMILIES, build, example
from tests.tiny import Tiny
from vlm_lens import HookedVLM
from vlm_lens.hooks.names import HookNameError
from vlm_lens.neurons.neuron import split_name
from vlm_lens.neurons.sites import matrix_of, sites

LINEARS = re.compile(
    r".*\b(fc1|fc2|gate_proj|up_proj|down_proj|wi_0|wi_1|wo|linear_fc1|linear_fc2|linear_1|linear_2"
    r"|merger\.mlp\.0|merger\.mlp\.2|(intermediate|output)(_query)?\.dense"
    r"|multi_modal_projector(\.linear)?|modality_projection\.proj|language_projection"
    r"|image_to_text_projection\.dense)"
)
"""The names of all linear layers of MLPs and projectors, whatever the family calls them."""

NO_SITE = {
    "gemma3": r".*language_model.*down_proj",  # the norm that follows it has one
    "instructblip-llama": r"qformer\.encoder\.layer\.\d\.output\.dense",
    "instructblip-t5": r"qformer\.encoder\.layer\.\d\.output\.dense",
    "kosmos2": r"image_to_text_projection\.dense",
}
"""Linear layers that have no hook point at their output, as the documentation says."""

NO_LINEAR = {
    "gemma3": r"blocks\.\d\.hook_mlp_out|projector\.hook_out",  # a norm, and a bare matrix
    "kosmos2": r"projector\.hook_out",  # attention's last layer
}


@cache
def built(name: str) -> HookedVLM:
    hf, processor = build(name)
    return HookedVLM(hf, processor=processor)


@cache
def outputs(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What every hook point shows of one image, and what the linear layers of MLPs give."""
    model = built(name)
    inputs = example(name, model.hf_model, model.processor, "image")
    shown: dict[str, Tensor] = {}
    given: dict[str, Tensor] = {}

    def keep(path: str) -> Any:
        return lambda _module, _args, output: given.update({path: output.detach()})

    handles = [
        module.register_forward_hook(keep(path))
        for path, module in model.hf_model.named_modules()
        if isinstance(module, nn.Linear) and LINEARS.fullmatch(path) and "attention" not in path
    ]
    with torch.no_grad():
        hook = ("*", lambda tensor, hook: shown.update({hook.name: tensor.clone()}))
        model.run_with_hooks(inputs, fwd_hooks=[hook])
    for handle in handles:
        handle.remove()
    return shown, given


@pytest.mark.parametrize("which", ["output", "act", "post"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_site_fires_and_has_one_axis_of_neurons(name: str, which: Any) -> None:
    found, (shown, _) = sites(built(name), which), outputs(name)
    assert len(found) == len(set(found)) >= 6
    for site in found:
        assert shown[site].ndim == 3, site
        assert shown[site].shape[-1] > 1, site
    order = list(built(name).hook_dict)
    assert found == sorted(found, key=order.index)


def shows(site: Tensor, output: Tensor) -> bool:
    """Whether the first and the last position of a hook point are among a layer's outputs."""
    rows = output.flatten(0, -2)
    if rows.shape[1] != site.shape[-1]:
        return False
    ends = (site.flatten(0, 1)[0], site.flatten(0, 1)[-1])
    return all(bool(torch.isclose(rows, end, atol=1e-6).all(1).any()) for end in ends)


@pytest.mark.parametrize("name", FAMILIES)
def test_output_is_the_output_of_every_linear_layer_of_mlps_and_projectors(name: str) -> None:
    shown, given = outputs(name)
    found = sites(built(name))
    assert len(given) >= len(found) - 4
    for path, output in given.items():
        has_site = any(shows(shown[site], output) for site in found)
        assert has_site != bool(re.fullmatch(NO_SITE.get(name, ""), path)), path
    for site in found:
        has_linear = any(shows(shown[site], output) for output in given.values())
        assert has_linear != bool(re.fullmatch(NO_LINEAR.get(name, ""), site)), site


@pytest.mark.parametrize("name", FAMILIES)
def test_post_is_what_the_last_layer_reads_and_act_comes_before(name: str) -> None:
    shown, _ = outputs(name)
    act, post = sites(built(name), "act"), sites(built(name), "post")
    assert len(act) == len(post)
    for first, last in zip(act, post, strict=True):
        gated = first != last
        assert gated == (last.replace("hook_post", "hook_pre_linear") in shown)
        if gated:
            product = shown[first] * shown[first.replace("hook_act", "hook_pre_linear")]
            torch.testing.assert_close(shown[last], product, rtol=1e-4, atol=1e-4)


def test_the_sites_of_llava(llava: Tiny) -> None:
    tower = [
        f"vision_encoder.blocks.{i}.{site}"
        for i in range(3)
        for site in ("mlp.hook_pre", "hook_mlp_out")
    ]
    text = [
        f"blocks.{i}.{site}"
        for i in range(3)
        for site in ("mlp.hook_pre", "mlp.hook_pre_linear", "hook_mlp_out")
    ]
    projector = ["projector.mlp.hook_pre", "projector.hook_out"]
    assert sites(llava.model) == [*tower, *projector, *text]
    acts = [f"blocks.{i}.mlp.hook_act" for i in range(3)]
    assert sites(llava.model, "act", component="language_model") == acts
    assert sites(llava.model, component="projector") == projector
    assert sites(llava.model, "*hook_resid_post", component="vision_encoder") == [
        f"vision_encoder.blocks.{i}.hook_resid_post" for i in range(3)
    ]


def test_the_sites_of_a_qformer_and_of_deepstack() -> None:
    block = ["mlp.hook_pre", "hook_mlp_out", "text_mlp.hook_pre"]
    assert sites(built("instructblip-llama"), component="qformer") == [
        f"qformer.blocks.{i}.{site}" for i in range(2) for site in block
    ]
    assert sites(built("qwen3_vl"), component="projector") == [
        *("projector.mlp.hook_pre", "projector.hook_out"),
        *("projector.deepstack.0.mlp.hook_pre", "projector.deepstack.0.hook_out"),
    ]


def test_a_component_has_its_parts() -> None:
    found = sites(built("mllama"), component="vision_encoder")
    assert "vision_encoder.global_transformer.blocks.0.mlp.hook_pre" in found
    assert len(found) == 8


@torch.no_grad()
def test_in_gemma_the_channel_behind_the_norm_is_zero_where_the_channel_is() -> None:
    model = built("gemma3")
    inputs = example("gemma3", model.hf_model, model.processor, "image")
    down = model.hf_model.model.language_model.layers[1].mlp.down_proj
    weight = down.weight.clone()
    try:
        down.weight[5] = 0.0
        _, kept = model.run_with_cache(inputs, names_filter="blocks.1.hook_mlp_out")
    finally:
        down.weight.copy_(weight)
    values = kept["blocks.1.hook_mlp_out"]
    assert not values[..., 5].any()
    assert values[..., :5].all()


@torch.no_grad()
def test_in_internvl_the_channel_is_scaled_after_the_site() -> None:
    model, prefix = built("internvl"), "vision_encoder.blocks.1"
    scale = model.hf_model.model.vision_tower.encoder.layer[1].lambda_2
    shown, _ = outputs("internvl")
    added = shown[f"{prefix}.hook_resid_post"] - shown[f"{prefix}.hook_resid_mid"]
    torch.testing.assert_close(added, scale * shown[f"{prefix}.hook_mlp_out"], rtol=1e-4, atol=1e-4)


# A choice of one's own ----------------------------------------------------------------------------


def test_heads_patterns_and_scales_are_left_out(llava: Tiny) -> None:
    found = sites(llava.model, "blocks.0.*")
    shown = {name for name in llava.model.hook_dict if name.startswith("blocks.0.")}
    left_out = shown - set(found)
    assert {name.rpartition("hook_")[2] for name in left_out} == {
        *("q", "k", "v", "z", "rot_q", "rot_k", "attn_scores", "pattern", "scale"),
    }
    by_list = sites(llava.model, ["blocks.0.*", "hook_embed"])
    assert set(by_list) == {*found, "hook_embed"}
    assert sites(llava.model, lambda name: name == "hook_embed") == ["hook_embed"]


def test_what_has_no_neurons_is_refused_by_name(llava: Tiny) -> None:
    for which in ("blocks.1.attn.hook_q", ["hook_embed", "blocks.1.attn.hook_q"]):
        with pytest.raises(ValueError, match="'blocks.1.attn.hook_q' has no neuron dimension"):
            sites(llava.model, which)
    with pytest.raises(ValueError, match="'vision_encoder.blocks.0.attn.hook_pattern' has no neur"):
        sites(llava.model, "*hook_pattern")
    with pytest.raises(HookNameError, match="hook_post"):
        sites(llava.model, "blocks.0.mlp.hook_pots")


def test_a_component_that_is_not_there_is_refused(llava: Tiny) -> None:
    with pytest.raises(ValueError, match="there is no component 'qformer': this model has vision"):
        sites(llava.model, component="qformer")
    with pytest.raises(ValueError, match="no hook point of 'projector' is among the sites 'blo"):
        sites(llava.model, "blocks.*.mlp.hook_pre", component="projector")


# Matrices -----------------------------------------------------------------------------------------


GATED, PLAIN = {"gate", "up", "down"}, {"fc1", "fc2"}
TWO_LAYERS = {"linear_1", "linear_2"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "llava_next",
            {"vision_encoder": PLAIN, "projector": TWO_LAYERS, "language_model": GATED},
        ),
        ("qwen2_vl", {"vision_encoder": PLAIN, "projector": TWO_LAYERS, "language_model": GATED}),
        ("qwen2_5_vl", {"vision_encoder": GATED, "projector": TWO_LAYERS, "language_model": GATED}),
        ("qwen3_vl", {"vision_encoder": PLAIN, "projector": TWO_LAYERS, "language_model": GATED}),
        (
            "blip2-opt",
            {
                "vision_encoder": PLAIN,
                "qformer": PLAIN,
                "projector": {"linear"},
                "language_model": PLAIN,
            },
        ),
        (
            "instructblip-t5",
            {
                "vision_encoder": PLAIN,
                "qformer": PLAIN,
                "projector": {"linear"},
                "encoder": GATED,
                "decoder": GATED,
            },
        ),
        ("kosmos2", {"vision_encoder": PLAIN, "projector": {"hook_out"}, "language_model": PLAIN}),
    ],
)
def test_matrices_are_named_by_gatedness(name: str, expected: dict[str, set[str]]) -> None:
    names = built(name).hook_dict
    found: dict[str, set[str]] = {}
    for site in sites(built(name)):
        found.setdefault(split_name(site)[0], set()).add(matrix_of(site, names))
    assert found == expected


def test_the_text_branch_of_a_gated_models_qformer_is_not_gated() -> None:
    names = built("instructblip-llama").hook_dict
    assert matrix_of("qformer.blocks.0.text_mlp.hook_pre", names) == "fc1"


def test_what_is_no_matrix_keeps_its_name(llava: Tiny) -> None:
    names = llava.model.hook_dict
    assert matrix_of("blocks.1.mlp.hook_post", names) == "mlp.hook_post"
    assert matrix_of("projector.mlp.hook_post", names) == "mlp.hook_post"
    assert matrix_of("hook_embed", names) == "hook_embed"
    assert matrix_of("blocks.0.hook_attn_out", names) == "hook_attn_out"
