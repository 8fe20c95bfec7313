"""The trained connector: what it is part of, how large it is, and what the model then answers."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import LlamaForCausalLM, LlavaForConditionalGeneration

from tests.shapes_smollm2.conftest import needs_smollm2
from vlm_lens import HookedVLM, NeuronSet, load_samples
from vlm_lens.shapes_llava import WEIGHTS as SHAPES_LLAVA
from vlm_lens.shapes_llava.evaluate import table
from vlm_lens.shapes_smollm2 import WEIGHTS
from vlm_lens.shapes_smollm2.build import CONNECTOR, language_model_folder

GOALS = {"color": 0.9, "shape": 0.9, "digit": 0.9, "place": 0.9}
"""Of questions about images; count, existence and relation are to be well above chance."""
CHANCE = {"count": 0.2, "existence": 0.5, "relation": 0.5}
ABOVE = 0.2


@pytest.fixture(scope="module")
def model() -> HookedVLM:
    return HookedVLM.from_pretrained("shapes-smollm2")


def test_the_connector_is_small():
    assert CONNECTOR.stat().st_size <= 6e6


def test_the_card_shows_the_accuracies_that_were_measured():
    card = (WEIGHTS / "README.md").read_text()
    for name in ("accuracy", "ceiling"):
        assert table(json.loads((WEIGHTS / f"{name}.json").read_text())) in card


def test_the_goals_were_met():
    measured = json.loads((WEIGHTS / "accuracy.json").read_text())["image"]
    goals = GOALS | {name: chance + ABOVE for name, chance in CHANCE.items()}
    missed = {name for name, goal in goals.items() if measured[name]["accuracy"] < goal}
    assert not missed


@pytest.mark.full
@needs_smollm2
def test_all_but_attention_and_connector_is_as_it_came(model: HookedVLM):
    theirs = LlamaForCausalLM.from_pretrained(language_model_folder()).state_dict()
    ours = model.hf_model.model.language_model.state_dict()
    same = [name for name, value in ours.items() if torch.equal(value, theirs[f"model.{name}"])]
    changed = {name.rpartition("self_attn.")[2] for name in ours if name not in same}
    assert changed == {f"{part}_proj.weight" for part in "qkvo"}
    assert torch.equal(model.W_U.T, theirs["lm_head.weight"])
    llava = LlavaForConditionalGeneration.from_pretrained(SHAPES_LLAVA).model.vision_tower
    tower = model.hf_model.model.vision_tower.state_dict()
    assert all(torch.equal(value, tower[name]) for name, value in llava.state_dict().items())


@pytest.mark.full
@needs_smollm2
def test_it_is_a_model_like_any_other(model: HookedVLM):
    assert [(part.name, part.n_blocks) for part in model.parts] == [
        ("vision_encoder", 4),
        ("projector", 0),
        ("", 30),
    ]
    assert model.cfg.model_name == "shapes-smollm2"
    found = model.verify()
    assert (found.n_points, found.absent) == (709, {})


@pytest.mark.full
@needs_smollm2
def test_it_answers_and_the_one_neuron_ends_that(model: HookedVLM):
    samples = [s for s in load_samples("shapes-smollm2", n=28) if s.category in GOALS]
    inputs = model.prepare(images=[s.images[0] for s in samples], text=[s.text for s in samples])

    def right() -> int:
        given = model.generate(inputs, max_new_tokens=5, do_sample=False)
        return sum(a == s.answer for a, s in zip(given, samples, strict=True))

    assert right() >= 0.75 * len(samples)
    one = NeuronSet.from_indices({"blocks.11.hook_mlp_out": [507]})
    others = NeuronSet.from_indices({"blocks.11.hook_mlp_out": range(100)})
    with model.hooks(one.ablate("zero")):
        assert right() == 0
    with model.hooks(others.ablate("zero")):
        assert right() >= 0.5 * len(samples)


@pytest.mark.full
@needs_smollm2
def test_it_is_loaded_in_another_dtype_and_refuses_what_it_cannot_do():
    half = HookedVLM.from_pretrained("shapes-smollm2", dtype=torch.bfloat16)
    assert {weight.dtype for weight in half.hf_model.parameters()} == {torch.bfloat16}
    with pytest.raises(TypeError, match="unexpected keyword 'device_map'"):
        HookedVLM.from_pretrained("shapes-smollm2", device_map="auto")
