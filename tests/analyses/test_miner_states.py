"""Convergence, probing, telomeres and attention of the last token, against single caches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.conftest import assert_no_hooks
from tests.families import FAMILIES, KINDS, build
from tests.tiny import Tiny, build_tiny, picture
from vlm_lens import HookedVLM, NeuronSet, Sample
from vlm_lens.analyses import miner_phenomena
from vlm_lens.analyses.miner_attention import LastTokenAttention, last_token_attention
from vlm_lens.analyses.miner_convergence import Convergence, convergence, knn_mixing, linear_cka
from vlm_lens.analyses.miner_phenomena import Phenomena, phenomena
from vlm_lens.analyses.miner_states import PooledStates, pooled_states

DEPTHS = ["blocks.0.hook_resid_pre", *(f"blocks.{i}.hook_resid_post" for i in range(3))]


def samples(n: int = 6) -> list[Sample]:
    texts = ["what color ?", "is the circle red ?", "left", "a green square is a circle ?"]
    asked = [Sample(images=[picture(i)], text=texts[i % 4]) for i in range(n)]
    return [*asked[:2], Sample(images=[], text="is one square red ?"), *asked[2:]]


def slow_states(model: HookedVLM, sample: Sample) -> dict[str, torch.Tensor]:
    """One sample's vectors [depth, d] from one cache."""
    inputs = model.prepare(text=sample.text, images=sample.images or None)
    with torch.no_grad():
        _, cache = model.run_with_cache(inputs, names_filter=DEPTHS)
    found = {}
    for kind in ("text", "special", "image"):
        positions = inputs.token_map[0].positions(kind)
        if positions:
            found[kind] = torch.stack([cache[name][0, positions].mean(0) for name in DEPTHS])
    return found


def test_states_are_means_over_tokens(llava: Tiny):
    found = pooled_states(llava.model, samples(), batch_size=3)
    assert found.names == tuple(DEPTHS)
    assert found.samples == {
        "text": list(range(7)),
        "special": list(range(7)),
        "image": [0, 1, 3, 4, 5, 6],
    }
    for place, sample in enumerate(samples()):
        for kind, expected in slow_states(llava.model, sample).items():
            vector = found.vectors[kind][found.samples[kind].index(place)]
            torch.testing.assert_close(vector, expected, rtol=0, atol=1e-5)
    image, text = found.pair("image", "text")
    assert len(image) == len(text) == 6
    assert torch.equal(text[2], found.vectors["text"][3])


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_states(name: str):
    hf, processor = build(name)
    model = HookedVLM(hf, processor=processor)
    given = [Sample(images=[picture(0)], text="what color ?")]
    if name == "qwen2_audio":
        sound = np.random.default_rng(0).standard_normal(8000).astype(np.float32)
        given = model.prepare(audio=sound, text="what color ?")
    elif "text" in KINDS[name]:
        given.append(Sample(images=[], text="is the circle red ?"))
    states = pooled_states(model, given)
    assert_no_hooks(model)
    assert {"text", "audio" if name == "qwen2_audio" else "image"} <= set(states.vectors)
    for vectors in states.vectors.values():
        assert vectors.shape[1] == len(states.names)
        assert vectors.isfinite().all()
    if model.cfg.is_encoder_decoder:
        with pytest.raises(ValueError, match="is an encoder with a decoder"):
            last_token_attention(model, given)
        return
    attention = last_token_attention(model, given)
    assert_no_hooks(model)
    assert attention.frame["mass"].between(0, 1).all()
    if name != "qwen2_audio":
        first = attention.frame.groupby("name", sort=False)["n_samples"].max()
        assert (first >= 1).all()


# Convergence --------------------------------------------------------------------------------------


def slow_mixing(one: np.ndarray, two: np.ndarray, k: int) -> float:
    both = [(vector, 0) for vector in one] + [(vector, 1) for vector in two]
    other = 0
    for i, (vector, kind) in enumerate(both):

        def cosine(pair, vector=vector):
            return pair[0] @ vector / np.linalg.norm(pair[0]) / np.linalg.norm(vector)

        rest = [pair for j, pair in enumerate(both) if j != i]
        nearest = sorted(rest, key=cosine, reverse=True)[:k]
        other += sum(its != kind for _, its in nearest)
    return other / (k * len(both)) / (len(one) / (len(both) - 1))


def slow_cka(x: np.ndarray, y: np.ndarray) -> float:
    """From centred Gram matrices, as in Kornblith et al. 2019."""
    n = len(x)
    centre = np.eye(n) - np.ones((n, n)) / n

    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        return float(np.trace(k @ centre @ m @ centre))

    k, m = x @ x.T, y @ y.T
    return hsic(k, m) / (hsic(k, k) * hsic(m, m)) ** 0.5


def test_measures_are_what_the_formulas_say():
    rng = np.random.default_rng(0)
    one, two = rng.standard_normal((8, 5)), rng.standard_normal((8, 5)) + 0.5
    x, y = torch.tensor(one), torch.tensor(two)
    assert knn_mixing(x, y, k=3) == pytest.approx(slow_mixing(one, two, 3))
    assert linear_cka(x, y) == pytest.approx(slow_cka(one, two))
    turn = torch.linalg.qr(torch.tensor(rng.standard_normal((5, 5)))).Q
    assert linear_cka(x, 3 * x @ turn + 7) == pytest.approx(1.0)
    assert linear_cka(x, torch.ones(8, 2)) == 0.0


def test_mixing_tells_one_cloud_from_two():
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(400, 3, generator=generator)
    assert knn_mixing(both[:200], both[200:]) == pytest.approx(1.0, abs=0.06)
    apart = torch.tensor([10.0, 0, 0])
    assert knn_mixing(both[:200] + apart, both[200:] - apart) == 0.0


def test_convergence_is_measured_at_every_depth(llava: Tiny, tmp_path):
    found = convergence(llava.model, samples(), k=3, batch_size=4)
    states = [slow_states(llava.model, s) for s in samples() if s.images]
    rows = found.frame.query("a == 'text' and b == 'image'")
    assert rows["depth"].tolist() == [0, 1, 2, 3]
    for depth, row in enumerate(rows.itertuples()):
        one, two = (
            np.stack([state[kind][depth].double().numpy() for state in states])
            for kind in ("text", "image")
        )
        assert row.knn_mixing == pytest.approx(slow_mixing(one, two, 3), abs=1e-5)
        assert row.cka == pytest.approx(slow_cka(one, two), abs=1e-4)
        cosine = (one * two).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(two, axis=1)
        assert row.cosine == pytest.approx(cosine.mean(), abs=1e-5)
        assert row.n_samples == 6
    assert found.frame["cka_shuffled"].between(0, 1).all()
    found.save(tmp_path)
    assert Convergence.load(tmp_path).frame.equals(found.frame)
    assert set(found.table()["measure"]) == {"knn_mixing", "cka", "cka_shuffled", "cosine"}


def test_convergence_needs_samples_with_both(llava: Tiny):
    with pytest.raises(ValueError, match="occur together in only 3 sample"):
        convergence(llava.model, samples()[:3])
    with pytest.raises(ValueError, match="k of at least 1"):
        convergence(llava.model, samples(), k=0)
    some = convergence(llava.model, samples()[:2] + samples()[2:3] * 4)
    assert some.notes == (
        "text and image occur together in only 2 samples: left out",
        "special and image occur together in only 2 samples: left out",
    )
    assert set(some.frame["b"]) == {"special"}


# Probing and telomeres ----------------------------------------------------------------------------


def cosine(one: np.ndarray, two: np.ndarray) -> float:
    return float(one @ two / np.linalg.norm(one) / np.linalg.norm(two))


def test_phenomena_are_measured_as_defined(llava: Tiny):
    found = phenomena(llava.model, samples(), batch_size=4).frame
    states = [slow_states(llava.model, s) for s in samples() if s.images]
    vectors = {
        kind: np.stack([state[kind].double().numpy() for state in states])
        for kind in ("text", "special", "image")
    }
    image, text, special = (vectors[kind] for kind in ("image", "text", "special"))
    for row in found[found.modality == "image"].itertuples():
        d = row.depth
        its = [1 - cosine(i[d], t[d]) for i, t in zip(image, text, strict=True)]
        theirs = [1 - cosine(s[d], t[d]) for s, t in zip(special, text, strict=True)]
        assert row.distance == pytest.approx(np.mean(its), abs=1e-5)
        assert row.special_distance == pytest.approx(np.mean(theirs), abs=1e-5)
        assert row.special_nearer == np.mean(np.array(theirs) < np.array(its))
        if d == 0:
            assert math.isnan(row.toward_text)
            assert math.isnan(row.text_toward)
            continue
        pairs = list(zip(image, text, strict=True))
        toward = np.mean([cosine(i[d] - i[d - 1], t[d - 1] - i[d - 1]) for i, t in pairs])
        back = np.mean([cosine(t[d] - t[d - 1], i[d - 1] - t[d - 1]) for i, t in pairs])
        assert row.toward_text == pytest.approx(toward, abs=1e-5)
        assert row.text_toward == pytest.approx(back, abs=1e-5)


def planted_states(*, image_moves: bool, special_near: bool) -> PooledStates:
    """Text stays where it is; images may go toward it, and special tokens be near to it."""
    text = torch.tensor([1.0, 0.0, 0.0]).expand(5, 4, 3)
    start = torch.tensor([0.0, 1.0, 0.0])
    steps = torch.linspace(0, 0.8, 4)[:, None] if image_moves else torch.zeros(4, 1)
    away = torch.tensor([0.0, 0.0, 0.1]) * torch.arange(4)[:, None]
    image = (start + steps * (text[0] - start) + (0 if image_moves else away)).expand(5, 4, 3)
    near = torch.tensor([1.0, 0.02, 0.0] if special_near else [-1.0, 0.1, 0.0]).expand(5, 4, 3)
    vectors = {"text": text, "special": near, "image": image}
    names = tuple(DEPTHS)
    return PooledStates(vectors, {kind: list(range(5)) for kind in vectors}, names, ())


@pytest.mark.parametrize("image_moves", [True, False])
@pytest.mark.parametrize("special_near", [True, False])
def test_planted_phenomena_are_found(llava: Tiny, monkeypatch, image_moves, special_near):
    states = planted_states(image_moves=image_moves, special_near=special_near)
    monkeypatch.setattr(miner_phenomena, "pooled_states", lambda *args, **kwargs: states)
    table = phenomena(llava.model, samples()).table().set_index("modality")
    assert table.loc["image", "probing"] == image_moves
    assert table.loc["image", "telomere"] == special_near
    if image_moves:
        assert table.loc["image", "toward_text"] == pytest.approx(1.0)


def test_without_special_tokens_nothing_is_known_of_telomeres(tmp_path):
    hf, processor = build("qwen2_5_vl")
    model = HookedVLM(hf, processor=processor)
    found = phenomena(model, [Sample(images=[picture(0)], text="what color ?")])
    assert found.notes == ("no special tokens occur, so nothing is known about telomeres",)
    assert found.table()["telomere"].isna().all()
    found.save(tmp_path)
    assert Phenomena.load(tmp_path).frame.equals(found.frame)


def test_phenomena_need_text_and_something_else():
    hf, processor = build("qwen2_5_vl")
    model = HookedVLM(hf, processor=processor)
    with pytest.raises(ValueError, match=r"got only \['text'\]"):
        phenomena(model, [Sample(images=[], text="what color ?")])


def test_states_that_are_not_finite_are_left_out():
    model = build_tiny("clip-llama").model
    word = model.tokenizer.convert_tokens_to_ids("green")
    model.hf_model.model.language_model.embed_tokens.weight.data[word] = torch.nan
    found = pooled_states(model, samples())
    assert found.samples["text"] == [0, 1, 2, 3, 5, 6]
    assert found.notes == ("1 sample left out: blocks.0.hook_resid_pre is infinite or NaN",)
    attention = last_token_attention(model, samples())
    assert attention.frame["mass"].notna().all()
    assert attention.notes[0].endswith("attn.hook_pattern is infinite or NaN")


# Attention ----------------------------------------------------------------------------------------


def slow_masses(model: HookedVLM, sample: Sample, hooks=()) -> dict[str, list[float]]:
    """By modality, one sample's mass in each layer."""
    inputs = model.prepare(text=sample.text, images=sample.images or None)
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(3)]
    with torch.no_grad(), model.hooks(list(hooks)):
        _, cache = model.run_with_cache(inputs, names_filter=names)
    found: dict[str, list[float]] = {}
    for kind in ("text", "special", "image"):
        positions = inputs.token_map[0].positions(kind)
        if positions:
            found[kind] = [float(cache[n][0, :, -1, positions].mean(0).sum()) for n in names]
    return found


def test_attention_of_the_last_token_is_read_with_and_without_neurons(llava: Tiny, tmp_path):
    model = llava.model
    name = "blocks.0.mlp.hook_act"
    neurons = NeuronSet.from_indices({name: range(30)}, sizes={name: 64})
    found = last_token_attention(model, samples(), selected={"early": neurons}, batch_size=3)
    assert_no_hooks(model)
    for masked, hooks in (("none", []), ("early", neurons.ablate("zero"))):
        each = [slow_masses(model, sample, hooks) for sample in samples()]
        for kind in ("text", "special", "image"):
            rows = found.frame[(found.frame.modality == kind) & (found.frame.masked == masked)]
            expected = np.mean([masses[kind] for masses in each if kind in masses], axis=0)
            np.testing.assert_allclose(rows["mass"], expected, atol=1e-5)
    assert found.table().columns.tolist() == [
        *("modality", "uniform", "none", "early", "early, random 0"),
    ]
    clean = found.frame[found.frame.masked == "none"]
    assert set(clean[clean.modality == "image"]["n_samples"]) == {6}
    before, after = (
        found.frame[found.frame.masked == m]["mass"].to_numpy() for m in ("none", "early")
    )
    assert np.allclose(before[:3], after[:3])  # the first layer's attention comes before its MLP
    assert not np.allclose(before[3:], after[3:])
    found.save(tmp_path)
    assert LastTokenAttention.load(tmp_path).frame.equals(found.frame)


def test_attention_to_all_adds_up_to_one(llava: Tiny):
    found = last_token_attention(llava.model, samples()[:2], split="prompt")
    np.testing.assert_allclose(found.frame["mass"], 1.0, atol=1e-5)
    assert set(found.frame["uniform"]) == {1.0}
