"""One neuron: its hook name, its text form and its order."""

from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_lens.neurons import Neuron

POST0, POST2, POST10 = (f"blocks.{layer}.mlp.hook_post" for layer in (0, 2, 10))


@pytest.mark.parametrize(
    ("name", "component", "layer", "site"),
    [
        ("blocks.3.mlp.hook_post", "language_model", 3, "mlp.hook_post"),
        ("blocks.12.hook_mlp_out", "language_model", 12, "hook_mlp_out"),
        ("vision_encoder.blocks.0.mlp.hook_post", "vision_encoder", 0, "mlp.hook_post"),
        ("projector.mlp.hook_post", "projector", None, "mlp.hook_post"),
        ("qformer.blocks.1.mlp.hook_post", "qformer", 1, "mlp.hook_post"),
        ("encoder.blocks.0.mlp.hook_post", "encoder", 0, "mlp.hook_post"),
        ("a.b.blocks.4.hook_x", "a.b", 4, "hook_x"),
        ("hook_embed", "language_model", None, "hook_embed"),
        ("ln_final.hook_scale", "language_model", None, "ln_final.hook_scale"),
        ("ln_final.hook_normalized", "language_model", None, "ln_final.hook_normalized"),
        ("embed.hook_out", "language_model", None, "embed.hook_out"),
        ("unembed.hook_in", "language_model", None, "unembed.hook_in"),
        ("vision_encoder.hook_embed", "vision_encoder", None, "hook_embed"),
        ("vision_encoder.ln_final.hook_scale", "vision_encoder", None, "ln_final.hook_scale"),
    ],
)
def test_a_name_gives_component_layer_and_site(name, component, layer, site):
    neuron = Neuron(name, 7)
    assert (neuron.component, neuron.layer, neuron.site) == (component, layer, site)


@pytest.mark.full
@given(st.from_regex(r"[a-z_.\[\]0-9]+", fullmatch=True), st.integers(0, 10**9))
def test_parse_undoes_str(name, index):
    neuron = Neuron(name, index)
    assert str(neuron) == f"{name}[{index}]"
    assert Neuron.parse(str(neuron)) == neuron


@pytest.mark.parametrize("text", ["", "blocks.0.x", "[3]", "a[-1]", "a[1.5]", "a[1", "a b[1]"])
def test_parse_refuses_anything_else(text):
    with pytest.raises(ValueError, match=r"cannot read .* as a neuron: expected a hook name and"):
        Neuron.parse(text)


@pytest.mark.parametrize("name", ["", "two words", "line\n"])
def test_a_neuron_needs_a_hook_name(name):
    with pytest.raises(ValueError, match="hook name without white space"):
        Neuron(name, 0)


@pytest.mark.usefixtures("unchecked")
def test_neurons_are_frozen_and_sort_by_layer_number():
    neuron = Neuron(POST2, np.int64(3))  # type: ignore[arg-type]
    assert type(neuron.index) is int
    with pytest.raises(FrozenInstanceError):
        neuron.index = 4  # type: ignore[misc]
    ordered = [Neuron(POST0, 9), Neuron(POST2, 1), Neuron(POST2, 3), Neuron(POST10, 0)]
    mixed = [ordered[place] for place in (3, 1, 0, 2)]
    assert sorted(mixed) == ordered
    assert Neuron(POST2, 3) >= neuron
    with pytest.raises(TypeError):
        assert neuron < "blocks.3"  # type: ignore[operator]
