"""PCICN's scores, against the authors' procedure in plain PyTorch, and against planted channels."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.analyses.entries import (
    ASKED,
    MODULES,
    N_POS,
    TEXT,
    Entry,
    by_entry,
    listed,
    positions,
)
from tests.conftest import assert_no_hooks
from tests.families import build
from tests.tiny import Tiny, build_tiny, picture
from vlm_lens import HookedVLM, NeuronSet, Sample
from vlm_lens.analyses.pcicn import score
from vlm_lens.hooks import HookNameError

# The authors' procedure, slowly -------------------------------------------------------------------


@contextmanager
def recorded(llama: torch.nn.Module) -> Iterator[dict[str, Tensor]]:
    """Outputs of the modules that the authors hook, by the name of our hook point."""
    outputs: dict[str, Tensor] = {}
    handles = []
    for layer, block in enumerate(llama.layers):
        for path, site in MODULES.items():

            def keep(_module, _args, output, name=f"blocks.{layer}.{site}"):
                outputs[name] = output.detach().clone()

            handles.append(block.get_submodule(path).register_forward_hook(keep))
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def authors_entries(
    tiny: Tiny, text: str, *, alpha: float, n_noisy: int, seed: int, threshold: float
) -> list[Entry]:
    """(hook point, position, channel, importance), sorted; one noisy copy after the other."""
    llama = tiny.hf.model.language_model
    embeds = tiny.hf.get_input_embeddings()(tiny.model.to_tokens(text)).detach()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad(), recorded(llama) as outputs:
        llama(inputs_embeds=embeds)
        clean = dict(outputs)
        moved: dict[str, list[Tensor]] = {name: [] for name in clean}
        for _ in range(n_noisy):
            noise = torch.randn(embeds.shape[1:], generator=generator)
            llama(inputs_embeds=(embeds + alpha * noise).to(embeds.dtype))
            for name in clean:
                moved[name].append((clean[name] - outputs[name]).abs())
    entries = []
    for name, each in moved.items():
        mean = torch.stack(each).mean(0)[0]
        for position, channel in (mean > threshold).nonzero().tolist():
            entries.append((name, position, channel, float(mean[position, channel])))
    return sorted(entries, key=lambda entry: -entry[3])


@pytest.fixture(scope="module")
def double() -> Tiny:
    """In double precision, in which rounding decides no rank."""
    return build_tiny("clip-llama", dtype=torch.float64)


def test_scores_are_those_of_the_authors_procedure(llava: Tiny):
    settings = {"alpha": 5.0, "n_noisy": 6, "seed": 3, "threshold": 1e-6}
    expected = by_entry(authors_entries(llava, TEXT, **settings))
    found = by_entry(listed(score(llava.model, TEXT, max_entries=10**6, **settings)))
    assert found.keys() == expected.keys()
    assert len(found) == N_POS * 3 * (32 * 6 + 64 * 3)  # every position of every channel moves
    order = list(expected)
    torch.testing.assert_close(
        torch.tensor([found[key] for key in order]),
        torch.tensor([expected[key] for key in order]),
        rtol=1e-5,
        atol=1e-5,
    )


def test_the_ranking_is_that_of_the_authors_procedure(double: Tiny):
    settings = {"alpha": 2.0, "n_noisy": 5, "seed": 0, "threshold": 1e-6}
    expected = authors_entries(double, TEXT, **settings)
    found = score(double.model, TEXT, batch_size=2, max_entries=700, **settings)
    assert [entry[:3] for entry in listed(found)] == [entry[:3] for entry in expected[:700]]
    assert len(found) == 700
    assert found.score.dtype == torch.float32


def test_a_threshold_drops_what_does_not_exceed_it(double: Tiny):
    settings = {"alpha": 2.0, "n_noisy": 3, "seed": 0}
    everything = authors_entries(double, TEXT, threshold=0.0, **settings)
    threshold = everything[200][3]
    expected = authors_entries(double, TEXT, threshold=threshold, **settings)
    found = listed(score(double.model, TEXT, threshold=threshold, max_entries=10**6, **settings))
    assert [entry[:3] for entry in found] == [entry[:3] for entry in expected]
    assert len(found) == 200
    assert len(score(double.model, TEXT, threshold=1e9, **settings)) == 0


# Copies, batches and seeds ------------------------------------------------------------------------


def test_the_batch_size_makes_no_difference(double: Tiny):
    one, seven, ten = (
        score(double.model, ASKED, n_noisy=10, batch_size=size) for size in (1, 7, 10)
    )
    for other in (seven, ten):
        for name in ("name_index", "position", "index"):
            assert torch.equal(getattr(one, name), getattr(other, name))
        torch.testing.assert_close(one.score, other.score)


def test_in_single_precision_the_batch_size_changes_rounding_only(llava: Tiny):
    one, seven = (
        by_entry(listed(score(llava.model, TEXT, n_noisy=8, batch_size=n, max_entries=10**6)))
        for n in (1, 7)
    )
    assert one.keys() == seven.keys()
    assert all(abs(one[key] - seven[key]) < 1e-4 * one[key] + 1e-5 for key in one)


def test_a_seed_decides_the_noise_and_the_global_random_state_is_left_alone(llava: Tiny):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = score(llava.model, TEXT, n_noisy=3, seed=1)
    assert torch.equal(torch.rand(3), expected)
    again, other = (score(llava.model, TEXT, n_noisy=3, seed=seed) for seed in (1, 2))
    assert listed(first) == listed(again)
    assert listed(first) != listed(other)


def test_more_copies_begin_with_the_same_ones(double: Tiny):
    """So the sum over 3 copies is that over the first 2 and the third one's."""
    sites = ["blocks.0.mlp.hook_pre"]
    two, three = (
        by_entry(listed(score(double.model, TEXT, n_noisy=n, sites=sites))) for n in (2, 3)
    )
    third = {key: 3 * three[key] - 2 * two[key] for key in two}
    assert min(third.values()) > -1e-4
    assert max(third.values()) > 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_single(llava: Tiny, dtype: torch.dtype):
    half = build_tiny("clip-llama", dtype=dtype)
    scores = score(half.model, TEXT, n_noisy=4)
    sums = scores.score * 4
    assert (sums.to(dtype).float() != sums).float().mean() > 0.5  # finer than half precision is
    found = by_entry(listed(scores))
    full = by_entry(listed(score(llava.model, TEXT, n_noisy=4)))
    shared = found.keys() & full.keys()
    assert len(shared) > 0.9 * len(full)
    values = torch.tensor([[found[key], full[key]] for key in shared])
    assert torch.corrcoef(values.T)[0, 1] > 0.95


# Where the noise goes -----------------------------------------------------------------------------


def test_noise_on_the_image_leaves_positions_before_it_alone(llava: Tiny):
    inputs = llava.model.prepare(images=picture(0), text="left : <image> what color ?")
    image = inputs.token_map[0].positions("image")
    n = inputs.shape[1]
    assert 2 < image[0] < image[-1] < n - 2
    kinds = {
        kind: score(llava.model, inputs, n_noisy=3, noise_on=kind, max_entries=10**6)
        for kind in ("text", "image", "all")
    }
    assert positions(kinds["image"]) == set(range(image[0], n))
    assert positions(kinds["all"]) == positions(kinds["text"]) == set(range(n))
    embed = {
        kind: positions(
            score(llava.model, inputs, n_noisy=3, noise_on=kind, sites="blocks.0.attn.hook_v")
        )
        for kind in ("text", "image", "all")
    }
    assert embed["image"] == set(image)
    assert embed["text"] == set(range(n)) - set(image)
    assert embed["all"] == set(range(n))


def test_a_position_gets_the_same_noise_wherever_else_noise_goes(double: Tiny):
    sites = "blocks.0.attn.hook_v"  # before any position sees another one
    everywhere, image, text = (
        by_entry(listed(score(double.model, ASKED, n_noisy=3, noise_on=kind, sites=sites)))
        for kind in ("all", "image", "text")
    )
    assert everywhere == pytest.approx(image | text)


def test_for_text_alone_text_means_everything(llava: Tiny):
    text, everywhere = (
        listed(score(llava.model, TEXT, n_noisy=2, noise_on=kind)) for kind in ("text", "all")
    )
    assert text == everywhere
    for sample in (TEXT, Sample(images=[], text="what color ?")):
        with pytest.raises(ValueError, match="noise_on='image' needs positions that hold an image"):
            score(llava.model, sample, noise_on="image")


def test_a_sample_its_inputs_and_its_text_are_the_same_prompt(llava: Tiny):
    inputs = llava.model.prepare(images=ASKED.images, text=ASKED.text)
    answered = replace(ASKED, answer="red")
    expected = listed(score(llava.model, inputs, n_noisy=2))
    assert listed(score(llava.model, ASKED, n_noisy=2)) == expected
    assert listed(score(llava.model, answered, n_noisy=2)) == expected
    text = score(llava.model, "what color ?", n_noisy=2)
    assert text.tokens == ("<bos>", "what", "color", "?")
    assert listed(text) == listed(
        score(llava.model, llava.model.prepare(text="what color ?"), n_noisy=2)
    )


# Planted ground truth -----------------------------------------------------------------------------


def test_a_channel_that_amplifies_noise_ranks_first():
    tiny = build_tiny("clip-llama")
    block = tiny.hf.model.language_model.layers[1]
    control = score(tiny.model, ASKED, n_noisy=4).neurons
    block.mlp.gate_proj.weight.data[37] *= 300
    block.mlp.down_proj.weight.data[:, 37] = 0  # nothing behind it moves more than before
    found = score(tiny.model, ASKED, n_noisy=4)
    assert [str(neuron) for neuron in found.neurons[:2]] == [
        "blocks.1.mlp.hook_pre[37]",
        "blocks.1.mlp.hook_act[37]",
    ]
    assert set(found.neurons[:2]).isdisjoint(control[:20])
    first = found.to_dataframe(10)
    assert (first["name"] == "blocks.1.mlp.hook_pre").all()
    assert found.n_entries(1) == 1
    assert found.n_neurons(10) == 1  # the same channel at ten positions


def test_masking_the_neurons_is_masking_the_modules_outputs(llava: Tiny):
    """Each kind of neuron that comes out can be ablated, and is a row of a module's output."""
    found, model = score(llava.model, TEXT, n_noisy=3, max_entries=10**6), llava.model
    best = {name: found.neurons.filter(site=name)[0] for name in MODULES.values()}
    tokens = model.to_tokens(TEXT)
    for path, site in MODULES.items():
        neuron = best[site]
        ablated = model.run_with_hooks(tokens, fwd_hooks=NeuronSet([neuron]).ablate())
        changed = copy.deepcopy(llava.hf)
        module = changed.model.language_model.layers[neuron.layer].get_submodule(path)

        def zero(_module, _args, output, index=neuron.index):
            output[..., index] = 0

        with torch.no_grad():
            module.register_forward_hook(zero)
            expected = changed(input_ids=tokens).logits
        torch.testing.assert_close(ablated, expected, rtol=1e-4, atol=1e-4)


# Not a number, infinite, refused ------------------------------------------------------------------


def test_overflow_is_a_result_and_what_is_not_a_number_is_left_out_with_a_warning(llava: Tiny):
    def overflow(tensor, hook):
        changed = tensor.clone()
        changed[1:, 2, 5] = torch.inf
        changed[1:, 3, 6] = torch.nan
        return changed

    site = "blocks.2.hook_mlp_out"
    hooks = llava.model.hooks([(site, overflow)])
    with hooks, pytest.warns(UserWarning, match="1 of 448 scores are not a number.*float32"):
        found = score(llava.model, TEXT, n_noisy=2, sites=site, max_entries=10**6)
    assert listed(found)[0] == (site, 2, 5, torch.inf)
    assert (site, 3, 6) not in by_entry(listed(found))
    assert found.parameters["not_a_number"] == 1
    assert len(found) == N_POS * 32 - 1


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0}, "alpha above 0"),
        ({"alpha": float("nan")}, "alpha must be a finite number"),
        ({"n_noisy": 0}, "n_noisy of at least 1, got 0"),
        ({"batch_size": 0}, "batch_size of at least 1, got 0"),
        ({"max_entries": -1}, "max_entries of at least 1, got -1"),
        ({"threshold": -1e-9}, "threshold of at least 0"),
        ({"noise_on": "sound"}, "'text', 'image' or 'all', got 'sound'"),
        ({"sites": "vision_encoder.blocks.0.mlp.hook_post"}, "of the language model"),
        ({"sites": "projector.*"}, "does not see the noise"),
        ({"sites": "blocks.0.attn.*"}, "patterns have no neurons"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(llava: Tiny, options, message):
    ran = []
    with (
        llava.model.hooks([("hook_embed", lambda t, hook: ran.append(1))]),
        pytest.raises(ValueError, match=message),
    ):
        score(llava.model, TEXT, **options)
    assert not ran


def test_sites_that_do_not_exist_and_batches_are_refused(llava: Tiny):
    with pytest.raises(HookNameError, match="Nearest"):
        score(llava.model, TEXT, sites="blocks.0.mlp.hook_pots")
    with pytest.raises(ValueError, match="one prompt without padding"):
        score(llava.model, llava.inputs("batch"))


def test_sites_with_other_positions_are_refused():
    hf, processor = build("mllama")
    model = HookedVLM(hf, processor=processor)
    with pytest.raises(ValueError, match="at the prompt's 8 positions, got .*cross_attn.hook_k"):
        score(model, ASKED, sites="blocks.1.cross_attn.hook_k")
    assert_no_hooks(model)


def test_dropout_is_refused():
    tiny = build_tiny("clip-llama")
    tiny.model.train()
    with pytest.raises(ValueError, match="training mode"):
        score(tiny.model, TEXT)


def test_no_hook_stays_when_a_run_breaks_off(llava: Tiny):
    def stop(tensor, hook):
        raise KeyboardInterrupt

    forwards = {name: vars(m).get("forward") for name, m in llava.hf.named_modules()}
    with llava.model.hooks([("blocks.1.hook_resid_post", stop)]), pytest.raises(KeyboardInterrupt):
        score(llava.model, ASKED, n_noisy=2)
    assert_no_hooks(llava.model)
    assert {name: vars(m).get("forward") for name, m in llava.hf.named_modules()} == forwards
    assert not any(parameter.grad is not None for parameter in llava.hf.parameters())
