"""Fast measurements against slow ones: batches, copies and what is not run again change nothing."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.families import FAMILIES, KINDS, build
from tests.families.base import picture
from tests.masking.reference import SAMPLES, Slow, first_linears, linear_of, without
from tests.tiny import Tiny, build_tiny
from vlm_lens import HookedVLM, NeuronSet
from vlm_lens.data import Sample
from vlm_lens.masking.runs import MaskedRun, MaskedRuns
from vlm_lens.neurons.neuron import Neuron
from vlm_lens.neurons.sites import sites
from vlm_lens.passes.answers import media_tokens
from vlm_lens.passes.batch import Batch, make_batches

KS = [0, 2, 30, 150]
IMAGE_TOKEN = 4


@cache
def tiny() -> Tiny:
    """A LLaVA some of whose answers end early: "green" ends one too."""
    built = build_tiny("clip-llama")
    built.hf.generation_config.eos_token_id = [2, 13]
    return built


@cache
def sizes() -> dict[str, int]:
    """The number of neurons at every output channel's hook point."""
    model, names = tiny().model, sites(tiny().model)
    with torch.no_grad():
        _, kept = model.run_with_cache(
            tiny().inputs("image"), names_filter=names, return_cache_object=False
        )
    return {name: value.shape[-1] for name, value in kept.items()}


@cache
def ranking(*parts: str) -> NeuronSet:
    """All neurons of some components in an order of no meaning."""
    every = [
        Neuron(name, index)
        for name, size in sizes().items()
        for index in range(size)
        if not parts or name.startswith(parts)
    ]
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(3)).tolist()
    return NeuronSet([every[i] for i in order], sizes=sizes())


@cache
def fill() -> dict[str, Tensor]:
    return {name: torch.linspace(-1, 1, size) for name, size in sizes().items()}


def samples(target: str) -> list[Sample]:
    return SAMPLES if target == "own" else [s for s in SAMPLES if s.answer is not None]


@cache
def batches(target: str, batch_size: int) -> list[Batch]:
    return make_batches(
        tiny().model,
        samples(target),
        target=target,  # type: ignore[arg-type]
        batch_size=batch_size,
        max_new_tokens=6,
    )


def slow(**options: Any) -> Slow:
    return Slow(tiny().model, never=[IMAGE_TOKEN], options=options)


@cache
def clean_answer(i: int) -> list[int]:
    return slow().answer(SAMPLES[i])


@cache
def slow_answer(i: int, k: int, first_token: bool = True) -> list[int]:
    return slow(first_token=first_token).answer(SAMPLES[i], ranking()[:k])


@cache
def slow_losses(target: str, k: int, first_token: bool) -> list[tuple[float, int, bool]]:
    """Of each sample: the loss, the number of tokens and whether it is the greedy answer."""
    found = []
    for i, sample in enumerate(samples(target)):
        answer = clean_answer(i) if target == "own" else str(sample.answer)
        total, n = slow(first_token=first_token).nll(sample, answer, ranking()[:k])
        written = slow_answer(i, k, first_token)
        tokenizer = tiny().model.tokenizer
        wanted: Any = answer
        if isinstance(answer, str):
            wanted = tokenizer(answer, add_special_tokens=False)["input_ids"]
        found.append((total, n, written[: len(wanted)] == wanted))
    return found


def fast(target: str, batch_size: int, **options: Any) -> MaskedRuns:
    settings: Any = {"max_new_tokens": 6, **options}
    return MaskedRuns(tiny().model, batches(target, batch_size), ranking(), **settings)


def assert_same(found, expected: list[tuple[float, int, bool]]) -> None:
    nll, n_tokens, is_greedy = zip(*expected, strict=True)
    torch.testing.assert_close(
        found.nll, torch.tensor(nll, dtype=torch.float64), rtol=1e-5, atol=1e-5
    )
    assert found.n_tokens.tolist() == list(n_tokens)
    assert found.is_greedy.tolist() == list(is_greedy)


def test_the_samples_show_all_that_can_go_wrong():
    """Answers of different lengths, some that change with k and some that do not."""
    assert len({len(clean_answer(i)) for i in range(len(SAMPLES))}) > 1
    same = [slow_losses("own", k, True)[i][2] for k in KS[1:] for i in range(len(SAMPLES))]
    assert 0 < sum(same) < len(same)
    assert slow_losses("own", 30, True) != slow_losses("own", 30, False)


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("batch_size", "rows", "reuse"),
    [(1, 64, True), (4, 1, False), (4, 1, True), (4, 64, True), (16, 64, False), (16, 11, True)],
)
@pytest.mark.parametrize(
    ("target", "first_token"), [("own", True), ("own", False), ("answer", False)]
)
def test_losses_are_those_of_one_sample_and_one_set_at_a_time(
    target, first_token, batch_size, rows, reuse
):
    runs = fast(target, batch_size, first_token=first_token, rows=rows, reuse=reuse)
    for together in ([30, 0, 150, 2], [30]):  # in any order, in one call or in several
        for k, found in zip(together, runs.losses(together), strict=True):
            assert_same(found, slow_losses(target, k, first_token))


@pytest.mark.parametrize("parts", [("blocks.2",), ("blocks.1",), ("projector",), ("vision",)])
def test_losses_where_only_a_part_is_masked(parts: tuple[str, ...]):
    chosen = ranking(*parts)
    runs = MaskedRuns(tiny().model, batches("own", 4), chosen, max_new_tokens=6)
    for ks in ([5, 40], [40], [5]):
        for k, found in zip(ks, runs.losses(ks), strict=True):
            expected = [slow().nll(s, clean_answer(i), chosen[:k]) for i, s in enumerate(SAMPLES)]
            torch.testing.assert_close(
                found.nll, torch.tensor([nll for nll, _ in expected]).double(), rtol=1e-5, atol=1e-5
            )


@pytest.mark.full
def test_earlier_layers_can_join_as_k_grows():
    """What was kept when fewer were masked is not returned when earlier neurons are masked too."""
    chosen = NeuronSet(
        [n for part in ("blocks.2", "blocks.0", "projector", "vision") for n in ranking(part)[:9]],
        sizes=sizes(),
    )
    runs = MaskedRuns(tiny().model, batches("own", 4), chosen, max_new_tokens=6)
    for k in (4, 9, 14, 20, 36, 12, 30, 4):
        [found] = runs.losses([k])
        expected = [slow().nll(s, clean_answer(i), chosen[:k])[0] for i, s in enumerate(SAMPLES)]
        torch.testing.assert_close(found.nll, torch.tensor(expected).double(), rtol=1e-5, atol=1e-5)
        written = runs.texts(runs.generated(k))
        assert written == [slow().text(sample, chosen[:k]) for sample in SAMPLES], k


def test_masked_neurons_can_be_set_to_values():
    [found] = fast("own", 4, fill=fill()).losses([30])
    chosen = ranking()[:30]
    expected = [
        slow(fill=fill()).nll(sample, clean_answer(i), chosen)[0]
        for i, sample in enumerate(SAMPLES)
    ]
    torch.testing.assert_close(found.nll, torch.tensor(expected).double(), rtol=1e-5, atol=1e-5)


@pytest.mark.sampled
@pytest.mark.parametrize(("batch_size", "reuse"), [(1, True), (4, True), (4, False)])
@pytest.mark.parametrize("first_token", [True, False], ids=["all", "not the first"])
def test_generated_answers_are_those_of_one_sample_at_a_time(first_token, batch_size, reuse):
    runs = fast("own", batch_size, first_token=first_token, reuse=reuse)
    for k in (30, 150, 30):
        found = runs.texts(runs.generated(k))
        decode = tiny().model.tokenizer.decode
        tokens = [slow_answer(i, k, first_token) for i in range(len(SAMPLES))]
        assert found == [decode(t, skip_special_tokens=True).strip() for t in tokens], k


@pytest.mark.full
@pytest.mark.parametrize("batch_size", [1, 4])
def test_losses_of_what_masked_models_wrote(batch_size: int):
    """Under the model that wrote it, and under the clean one."""
    runs = fast("own", batch_size)
    for k in (30, 150):
        generated = runs.generated(k)
        for judge in (k, 0):
            found = runs.losses_of(judge, generated)
            expected = [
                slow().nll(sample, slow_answer(i, k), ranking()[:judge])
                for i, sample in enumerate(SAMPLES)
            ]
            nll, n_tokens = zip(*expected, strict=True)
            torch.testing.assert_close(found.nll, torch.tensor(nll).double(), rtol=1e-5, atol=1e-5)
            assert found.n_tokens.tolist() == list(n_tokens)
        assert runs.losses_of(k, generated).is_greedy.all()


def test_a_run_generates_its_answers_when_they_are_asked_for():
    runs = fast("own", 4)
    clean, masked = (
        MaskedRun(runs, k, losses, None if k == 0 else clean_run)
        for clean_run in [MaskedRun(runs, 0, runs.losses([0])[0])]
        for k, losses in zip((0, 150), runs.losses([0, 150]), strict=True)
    )
    assert clean.has_answers
    assert clean.answers == [a for batch in runs.batches for a in batch.answers]
    assert clean.reference is clean
    assert not masked.has_answers
    assert masked.answers == [slow().text(sample, ranking()[:150]) for sample in SAMPLES]
    assert masked.has_answers
    assert masked.reference.k == 0


def test_a_model_that_would_write_the_image_token_does_not_get_to():
    """There is no image behind it: its own text could not be read again."""
    built = build_tiny("clip-llama")
    with torch.no_grad():
        built.hf.lm_head.weight[IMAGE_TOKEN] = 3 * built.hf.lm_head.weight[8]
    made = make_batches(built.model, SAMPLES, max_new_tokens=4)
    runs = MaskedRuns(built.model, made, ranking(), max_new_tokens=4)
    for k in (0, 30):
        generated = runs.generated(k)
        assert not any(
            (t[:, b.prompts.shape[1] :] == IMAGE_TOKEN).any()
            for t, b in zip(generated, made, strict=True)
        )
        assert runs.losses_of(k, generated).is_greedy.all()
    [clean] = runs.losses([0])
    assert clean.is_greedy.all()
    logits = built.hf(**made[0].arguments).logits[:, :-1]
    assert (logits.argmax(-1)[made[0].scored] == IMAGE_TOKEN).any()


def test_a_models_own_generation_settings_are_set_aside():
    """With a penalty on repetitions its answer is not what its likeliest tokens are."""
    built = build_tiny("clip-llama")
    built.hf.generation_config.repetition_penalty = 5.0
    built.hf.generation_config.num_beams = 2
    made = make_batches(built.model, SAMPLES, max_new_tokens=4)
    runs = MaskedRuns(built.model, made, ranking(), max_new_tokens=4)
    assert runs.losses([0])[0].is_greedy.all()
    assert runs.losses_of(30, runs.generated(30)).is_greedy.all()


def test_a_text_is_scored_from_its_second_token_to_its_last():
    texts = [sample for sample in SAMPLES if not sample.images]
    made = make_batches(tiny().model, texts, target="text", max_new_tokens=2)
    chosen = ranking("blocks")[:30]
    found = MaskedRuns(tiny().model, made, chosen).losses([0, 30])
    for k, losses in zip((0, 30), found, strict=True):
        for i, sample in enumerate(texts):
            tokens = tiny().model.to_tokens(sample.text)
            with torch.no_grad(), without(tiny().hf, chosen[:k]):
                log_p = tiny().hf(tokens).logits[0].double().log_softmax(-1)
            expected = -sum(float(log_p[j - 1, tokens[0, j]]) for j in range(1, tokens.shape[1]))
            assert float(losses.nll[i]) == pytest.approx(expected, rel=1e-5)
            assert losses.n_tokens[i] == tokens.shape[1] - 1


# Families -----------------------------------------------------------------------------------------


def family_samples(family: str) -> list[Sample]:
    """Two pictures of different sizes, and where the family allows it a prompt without one."""
    media = [[picture(0, size=(50, 34))], [picture(1, size=(34, 66))]]
    if "image" not in KINDS[family] or family == "qwen2_audio":
        media = [[], []]
    elif "text" in KINDS[family] and family != "mllama":  # whose text attends to others' padding
        media.insert(1, [])
    texts = ["what color ?", "is the square red ?", "circle"]
    answers = ["red", "a blue square", "one two"]
    return [
        Sample(images, text, answer=answer)
        for images, text, answer in zip(media, texts, answers, strict=False)
    ]


def family_ranking(model: HookedVLM, family: str) -> NeuronSet:
    """First the language model's neurons, then the tower's."""
    stacks = ["decoder.", "encoder."] if family.endswith("t5") else [""]
    names = [f"{stack}blocks.{layer}.mlp.hook_pre" for layer in (2, 1) for stack in stacks]
    # The padding of Mllama's tiles, which its hook points do not show, is read by its patches.
    if family not in ("qwen2_audio", "mllama"):
        names.append("vision_encoder.blocks.1.mlp.hook_pre")
    sizes = {
        name: linear_of(model.hf_model, name, first_linears(family)).out_features for name in names
    }
    return NeuronSet([Neuron(name, 3 * i) for name in names for i in range(15)], sizes=sizes)


@pytest.mark.sampled
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_measured_as_one_sample_at_a_time(family: str):
    hf, processor = build(family)
    model = HookedVLM(hf, processor=processor)
    examples, chosen = family_samples(family), family_ranking(model, family)
    made = make_batches(model, examples, target="answer", max_new_tokens=3)
    runs = MaskedRuns(model, made, chosen, first_token=False, max_new_tokens=3)
    one_by_one = Slow(
        model,
        table=first_linears(family),
        options={"first_token": False},
        max_new_tokens=3,
        never=media_tokens(model),
    )
    ks = [0, 5, 20, len(chosen)]
    expected = {k: [one_by_one.nll(s, str(s.answer), chosen[:k]) for s in examples] for k in ks}
    for together in (ks, [20, 5]):
        for k, found in zip(together, runs.losses(together), strict=True):
            nll, n_tokens = zip(*expected[k], strict=True)
            torch.testing.assert_close(found.nll, torch.tensor(nll).double(), rtol=1e-4, atol=1e-5)
            assert found.n_tokens.tolist() == list(n_tokens)
    if family != "kosmos2":  # Hugging Face generates padded prompts at other positions
        for k in (len(chosen), 5):
            written = [one_by_one.text(sample, chosen[:k]) for sample in examples]
            assert runs.texts(runs.generated(k)) == written


# Overflow -----------------------------------------------------------------------------------------


def overflowing(dtype: torch.dtype) -> tuple[Tiny, NeuronSet]:
    """A projector in which one constant neuron keeps another one from overflowing."""
    built = build_tiny("clip-llama", dtype=dtype)
    high, weight = (10.0, 6e3) if dtype == torch.float16 else (1e19, 3e19)
    projector = built.hf.model.multi_modal_projector
    with torch.no_grad():
        projector.linear_1.weight[:2] = 0
        projector.linear_1.bias[:2] = high
        projector.linear_2.weight[5] = 0
        projector.linear_2.weight[5, 0] = weight
        projector.linear_2.weight[5, 1] = -weight
        projector.linear_2.bias[5] = weight * high / 2
    name = "projector.mlp.hook_pre"
    return built, NeuronSet.from_indices({name: [7, 1, 0]}, sizes={name: 32})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 64])
def test_what_is_not_finite_is_an_infinite_loss_and_no_error(dtype: torch.dtype, rows: int):
    built, chosen = overflowing(dtype)
    made = make_batches(built.model, SAMPLES, batch_size=3, max_new_tokens=3)
    runs = MaskedRuns(built.model, made, chosen, rows=rows, max_new_tokens=3)
    with_image = torch.tensor([bool(sample.images) for sample in SAMPLES])
    clean, one, two, three = runs.losses([0, 1, 2, 3])
    for found in (clean, one, three):
        assert found.nll.isfinite().all()
    assert torch.equal(two.nll == math.inf, with_image)
    assert not two.is_greedy[with_image].any()
    assert two.is_greedy[~with_image].all()
    generated = runs.generated(2)
    assert len(runs.texts(generated)) == len(SAMPLES)
    assert torch.equal(runs.losses_of(2, generated).nll == math.inf, with_image)
