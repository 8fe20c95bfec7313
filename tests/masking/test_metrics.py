"""Every metric against numbers worked out by hand, and what counts as collapse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPConfig, CLIPModel, CLIPProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.masking.reference import SAMPLES
from tests.tiny import Tiny, build_tokenizer, picture
from vlm_lens import NeuronSet
from vlm_lens.data import Sample
from vlm_lens.masking.metrics import (
    ACCURACY,
    AGREEMENT,
    CLEAN_PERPLEXITY,
    COLLAPSE,
    DEGRADED,
    OWN_PERPLEXITY,
    PERPLEXITY,
    PERPLEXITY_RATIO,
    Criterion,
    clip_score,
    similarity,
    word_overlap,
)
from vlm_lens.masking.runs import Losses, MaskedRun, MaskedRuns
from vlm_lens.passes.batch import make_batches

NAME = "blocks.1.hook_mlp_out"
RANKING = NeuronSet.from_indices({NAME: range(32)}, sizes={NAME: 32})


def losses(nll: Sequence[float], n_tokens: Sequence[int], greedy: Sequence[bool]) -> Losses:
    return Losses(
        nll=torch.tensor(nll, dtype=torch.float64),
        n_tokens=torch.tensor(n_tokens),
        is_greedy=torch.tensor(greedy),
    )


class Told(MaskedRuns):
    """Runs whose results are given."""

    def __init__(
        self,
        llava: Tiny,
        samples: Sequence[Sample],
        *,
        answers: Sequence[str] = (),
        of_own: dict[int, Losses] | None = None,
    ) -> None:
        batches = make_batches(llava.model, samples, batch_size=2, max_new_tokens=2)
        super().__init__(llava.model, batches, RANKING)
        self._answers, self._of_own = list(answers), of_own or {}

    def generated(self, k: int) -> list[torch.Tensor]:
        return [torch.full((1, 1), k)]

    def texts(self, generated: Sequence[torch.Tensor]) -> list[str]:
        assert [tokens.item() for tokens in generated] == [3]
        return self._answers

    def losses_of(self, k: int, generated: Sequence[torch.Tensor]) -> Losses:
        assert [tokens.item() for tokens in generated] == [3]
        return self._of_own[k]


def run(told: Told, masked: Losses, clean: Losses | None = None) -> MaskedRun:
    """What is without three neurons."""
    reference = MaskedRun(told, 0, clean or masked)
    return MaskedRun(told, 3, masked, reference)


# Perplexities -------------------------------------------------------------------------------------


def test_perplexity_is_over_all_tokens_of_all_samples(llava: Tiny):
    told = Told(llava, SAMPLES[:3])
    masked = losses([6.0, 0.0, 3.0], [2, 3, 4], [True, True, False])
    clean = losses([0.9, 0.0, 0.0], [2, 3, 4], [True, True, True])
    of = run(told, masked, clean)
    assert PERPLEXITY.of(of) == pytest.approx(math.exp(9 / 9))
    assert PERPLEXITY.of(of.reference) == pytest.approx(math.exp(0.9 / 9))
    assert PERPLEXITY_RATIO.of(of) == pytest.approx(math.exp(1 - 0.1))
    assert PERPLEXITY_RATIO.of(of.reference) == 1.0
    # Its logarithm is what PCICN calls Delta: the mean of what the tokens lose, in base 10.
    assert math.log10(PERPLEXITY_RATIO.of(of)) == pytest.approx((9 - 0.9) / (9 * math.log(10)))
    assert AGREEMENT.of(of) == pytest.approx(2 / 3)


@pytest.mark.parametrize("nll", [math.inf, 1e6])
def test_a_perplexity_that_no_number_can_hold_is_infinite(llava: Tiny, nll: float):
    told = Told(llava, SAMPLES[:2])
    of = run(
        told,
        losses([nll, 1.0], [2, 3], [False, True]),
        losses([1.0, 1.0], [2, 3], [True, True]),
    )
    assert PERPLEXITY.of(of) == math.inf
    assert PERPLEXITY_RATIO.of(of) == math.inf


def test_a_model_that_is_broken_from_the_start_has_no_ratio_and_that_is_no_error(llava: Tiny):
    told = Told(llava, SAMPLES[:2])
    broken = losses([math.inf, 1.0], [2, 3], [False, True])
    of = run(told, broken, broken)
    assert math.isnan(PERPLEXITY_RATIO.of(of))
    assert Criterion(PERPLEXITY_RATIO, at_least=10.0).is_met(PERPLEXITY_RATIO.of(of))


def test_perplexities_of_what_is_generated_are_under_the_masked_and_the_clean_model(llava: Tiny):
    told = Told(
        llava,
        SAMPLES[:2],
        of_own={
            3: losses([2.0, 2.0], [1, 3], [True] * 2),
            0: losses([8.0, 8.0], [1, 3], [True] * 2),
        },
    )
    of = run(told, losses([0.0, 0.0], [1, 1], [True, True]))
    assert OWN_PERPLEXITY.of(of) == pytest.approx(math.e)
    assert CLEAN_PERPLEXITY.of(of) == pytest.approx(math.exp(4))


def test_the_three_perplexities_agree_where_nothing_is_masked(llava: Tiny):
    batches = make_batches(llava.model, SAMPLES, batch_size=2, max_new_tokens=4)
    runs = MaskedRuns(llava.model, batches, RANKING, max_new_tokens=4)
    of = MaskedRun(runs, 0, runs.losses([0])[0])
    for metric in (OWN_PERPLEXITY, CLEAN_PERPLEXITY):
        assert metric.of(of) == pytest.approx(PERPLEXITY.of(of), rel=1e-5)


# Answers ------------------------------------------------------------------------------------------

ANSWERED = [
    Sample([], "what color ?", answer="Red circle"),
    Sample([], "color ?", answer=None),
    Sample([picture(0)], "what ?", answer="two"),
]


def told_answers(llava: Tiny, *answers: str) -> MaskedRun:
    told = Told(llava, ANSWERED, answers=answers)
    return run(told, losses([0.0] * 3, [1] * 3, [True] * 3))


def test_accuracy_counts_answers_with_the_words_of_the_reference(llava: Tiny):
    assert ACCURACY.of(told_answers(llava, "red  CIRCLE", "whatever", "one")) == 0.5
    assert ACCURACY.of(told_answers(llava, "red", "", "two")) == 0.5
    assert ACCURACY.of(told_answers(llava, "circle red", "", "two two")) == 0.0
    assert ACCURACY.of(told_answers(llava, "red circle", "", "two")) == 1.0


def test_accuracy_needs_a_reference(llava: Tiny):
    told = Told(llava, ANSWERED[1:2], answers=["red"])
    with pytest.raises(ValueError, match="samples with answers to measure accuracy, got none"):
        ACCURACY.of(run(told, losses([0.0], [1], [True])))


def test_similarity_is_the_mean_over_the_clean_answers(llava: Tiny):
    of = told_answers(llava, "a", "b", "c")
    clean = [answer for batch in of.runs.batches for answer in batch.answers]
    seen: list[Any] = []

    def alike(texts: Sequence[str], others: Sequence[str]) -> list[float]:
        seen.append((list(texts), list(others)))
        return [0.5, 0.25, 0.0]

    metric = similarity(alike, name="sentence_similarity")
    assert metric.name == "sentence_similarity"
    assert metric.of(of) == 0.25
    assert seen == [(["a", "b", "c"], clean)]
    assert similarity().of(of) == 0.0
    assert similarity().of(of.reference) == 1.0


@pytest.mark.parametrize(
    ("text", "other", "f1"),
    [
        ("a red circle", "a red circle", 1.0),
        ("A Red CIRCLE", "a red circle", 1.0),
        ("circle red a", "a red circle", 1.0),  # order does not count
        ("red", "a red circle", 0.5),  # precision 1, recall 1/3
        ("red red red", "red", 0.5),  # each of its words counts as often as both have it
        ("the the the the", "the cat on the mat", 4 / 9),
        ("blue", "red", 0.0),
        ("", "red", 0.0),
        ("red", "", 0.0),
        ("", "", 1.0),
        ("  \n", "", 1.0),
    ],
)
def test_word_overlap_by_hand(text: str, other: str, f1: float):
    assert word_overlap([text], [other]) == pytest.approx([f1])


words = st.lists(st.sampled_from("abcd"), max_size=6).map(" ".join)


@given(pairs=st.lists(st.tuples(words, words), max_size=5))
def test_word_overlap_is_symmetric_and_from_0_to_1(pairs):
    texts, others = [a for a, _ in pairs], [b for _, b in pairs]
    found = word_overlap(texts, others)
    assert found == word_overlap(others, texts)
    assert all(0 <= value <= 1 for value in found)
    assert [value == 1 for value in found] == [
        sorted(a.split()) == sorted(b.split()) for a, b in pairs
    ]


# CLIPScore ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip() -> tuple[CLIPModel, CLIPProcessor]:
    tokenizer = build_tokenizer()
    tokenizer.model_max_length = 8
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text = {**sizes, "vocab_size": len(tokenizer), "max_position_embeddings": 8}
    text |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=text,
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
        projection_dim=4,
    )
    model = CLIPModel(config).eval()
    for parameter in model.parameters():
        parameter.data.mul_(5 if parameter.ndim > 1 else 1)
    images = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    return model, CLIPProcessor(images, tokenizer)


ILLUSTRATED = [
    Sample([picture(5), picture(6)], "<image> left <image> right ?"),
    Sample([], "is it red ?"),
    Sample([picture(7, size=(64, 40))], "color ?"),
    Sample([picture(8)], "what ?"),
]


def test_clip_score_is_the_mean_cosine_of_image_and_answer(llava: Tiny, clip):
    model, processor = clip
    answers = ["red <eos>", "no picture", "a blue square <eos>", "<eos>"]
    told = Told(llava, ILLUSTRATED, answers=answers)
    found = clip_score(model, processor).of(run(told, losses([0.0] * 4, [1] * 4, [True] * 4)))
    cosines = []
    for sample, answer in zip(ILLUSTRATED, answers, strict=True):
        if sample.images:  # one at a time, so without padding
            pixels = processor.image_processor(sample.images[0], return_tensors="pt")
            tokens = processor.tokenizer(answer, return_tensors="pt")
            with torch.no_grad():
                image = model.get_image_features(**pixels).pooler_output[0]
                text = model.get_text_features(**tokens).pooler_output[0]
            cosines.append(float(image @ text / (image.norm() * text.norm())))
    assert min(cosines) < 0 < max(cosines)
    assert found == pytest.approx(sum(max(0.0, c) for c in cosines) / 3, abs=1e-6)
    assert 0 < found < 1


def test_clip_score_cuts_an_answer_that_is_too_long(llava: Tiny, clip):
    told = Told(llava, ILLUSTRATED[2:], answers=["red " * 50, ""])
    value = clip_score(*clip, name="clip").of(run(told, losses([0.0] * 2, [1] * 2, [True] * 2)))
    assert 0 <= value <= 1


def test_clip_score_needs_images(llava: Tiny, clip):
    told = Told(llava, ILLUSTRATED[1:2], answers=["red"])
    with pytest.raises(ValueError, match="CLIPScore needs samples with images, got none"):
        clip_score(*clip).of(run(told, losses([0.0], [1], [True])))


# Criteria -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "up", "down"),
    [
        (0.3, False, True),
        (0.31, False, False),
        (9.99, False, False),
        (10.0, True, False),
        (math.inf, True, True),
        (-math.inf, True, True),
        (math.nan, True, True),
    ],
)
def test_a_criterion_is_met_at_its_threshold_and_by_what_is_not_finite(value, up, down):
    assert Criterion(PERPLEXITY_RATIO, at_least=10.0).is_met(value) is up
    assert Criterion(similarity(), at_most=0.3).is_met(value) is down


@pytest.mark.parametrize("limits", [{}, {"at_least": 1.0, "at_most": 2.0}], ids=str)
def test_a_criterion_has_one_threshold(limits: dict[str, float]):
    with pytest.raises(ValueError, match="'agreement' needs at_least or at_most, one of them"):
        Criterion(AGREEMENT, **limits)


@pytest.mark.parametrize("side", ["at_least", "at_most"])
def test_a_threshold_is_a_number_or_beyond_all_numbers(side: str):
    with pytest.raises(ValueError, match="expected a threshold on 'agreement', got nan"):
        Criterion(AGREEMENT, **{side: math.nan})
    # By this one only what is not finite counts.
    assert not Criterion(PERPLEXITY, at_least=math.inf).is_met(1e300)
    assert Criterion(PERPLEXITY, at_least=math.inf).is_met(math.inf)


def test_criteria_say_what_they_are():
    assert [str(criterion) for criterion in COLLAPSE] == [
        "perplexity_ratio >= 10",
        "similarity <= 0.3",
    ]
    assert str(DEGRADED) == "agreement <= 0.95"
