"""Every result of the package is kept, refused and shown in one way."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import vlm_lens
from vlm_lens.analyses.comparison import Comparison
from vlm_lens.analyses.critical import CriticalNeurons
from vlm_lens.analyses.direct_effect import DirectEffect
from vlm_lens.analyses.entry_scores import EntryScores
from vlm_lens.analyses.exemplars import Exemplars
from vlm_lens.analyses.explaining.explained import ExplainedNeuron
from vlm_lens.analyses.explaining.explanation import Explanation
from vlm_lens.analyses.explaining.scoring import Score
from vlm_lens.analyses.explanations import Explanations
from vlm_lens.analyses.logit_effect import LogitEffect
from vlm_lens.analyses.mined import Mined
from vlm_lens.analyses.miner_scores import METRICS, ModalityScores
from vlm_lens.analyses.neuron_types_labels import SiteTypes
from vlm_lens.analyses.neuron_types_result import NeuronTypes
from vlm_lens.experiments import Selected
from vlm_lens.masking.measurement import Measurement, Stages
from vlm_lens.neurons import Neuron, NeuronSet
from vlm_lens.results import Result
from vlm_lens.results.packing import packed_whole, unpacked
from vlm_lens.results.scores import Scores
from vlm_lens.results.table import TableResult
from vlm_lens.statistics import NeuronStatistics, TopSamples
from vlm_lens.statistics.moments import Moments
from vlm_lens.statistics.site_statistics import SiteStatistics

NAME = "blocks.1.hook_mlp_out"
PARAMETERS = {"seed": 3, "threshold": float("inf"), "inner": {"names": ["<image>"], "none": None}}
EVIL = "<script>alert(1)</script>"


def searched(k: int | None = 2) -> CriticalNeurons:
    ranking = NeuronSet.from_indices({NAME: [7, 2, 5]}, sizes={NAME: 8, "projector.hook_out": 4})
    curve = tuple(Measurement(i, {"perplexity": 1.5 + i}, i == k, ("a", "b")) for i in range(3))
    return CriticalNeurons(
        method="CAN", k=k, ranking=ranking, curve=curve, stages=Stages(None, k, "a rule"),
        is_monotone=True, prompts=("one", "two"), references=("a", None), notes=(EVIL,),
        parameters=PARAMETERS,
    )  # fmt: skip


def statistics() -> NeuronStatistics:
    torch.manual_seed(0)
    moments = {
        types: Moments.of(torch.randn(4, 3), active_above=0.0) for types in ((0,), (0, 1), ())
    }
    top = TopSamples(2).plus(torch.randn(3, 3), [4, 5, 6], torch.zeros(3, 3, dtype=torch.long))
    sites = {NAME: SiteStatistics(moments, top)}
    return NeuronStatistics(("all", "image"), ((4, 7), (9, 10)), PARAMETERS, sites, {5: EVIL})


def explained() -> Explanations:
    neuron = Neuron(NAME, 3)
    nothing = Exemplars(neuron, (), (), 2.5)
    one = ExplainedNeuron(
        Explanation(EVIL), Score(pearson=0.5, spearman=0.25, notes=("constant",)), nothing, nothing
    )
    return Explanations((one,), np.array([[0.1], [np.nan]]), skipped={Neuron(NAME, 4): "why"})


FRAME = pd.DataFrame({"a": [EVIL, "b"], "layer": pd.array([1, None], "Int64"), "x": [0.5, np.nan]})
EXAMPLES: dict[type[Result], Result] = {
    Scores: Scores({NAME: torch.tensor([1.0, float("nan")])}, "demo", PARAMETERS),
    Selected: Selected(
        Scores({NAME: torch.ones(2, 3)}, "demo", axes={"group": (EVIL, "b")}),
        {EVIL: NeuronSet.from_indices({NAME: [2]}, sizes={NAME: 3}), "b": NeuronSet()},
        PARAMETERS,
        (EVIL,),
    ),
    EntryScores: EntryScores(
        {NAME: 9}, torch.tensor([0, 0]), torch.tensor([0, 1]), torch.tensor([5, 2]),
        torch.tensor([8.0, 6.0]), ("<s>", EVIL), "PCICN", PARAMETERS,
    ),
    ModalityScores: ModalityScores(
        {NAME: torch.rand(5, 2, 3)}, "MINER", PARAMETERS,
        {"metric": METRICS, "modality": ("text", "image")}, (EVIL,), {"demo": 3},
        {"demo": {"text": 3, "image": 0}},
    ),
    Mined: Mined(
        ModalityScores(
            {NAME: torch.rand(5, 2, 3)}, "MINER", PARAMETERS,
            {"metric": METRICS, "modality": ("text", EVIL)}, (EVIL,), {"demo": 3},
            {"demo": {"text": 3, EVIL: 3}},
        ),
        {"text": NeuronSet.from_indices({NAME: [2]}, sizes={NAME: 3}), EVIL: NeuronSet()},
        0.5, "LA_MU", (0.0, 0.25, 0.25, 0.5, 0.0),
    ),
    DirectEffect: DirectEffect(
        {NAME: torch.ones(2)}, "direct effect", token=3, position=4, logit=0.5,
        activations={NAME: torch.rand(2)},
    ),
    NeuronTypes: NeuronTypes(
        {NAME: SiteTypes(torch.ones(4, 2).long(), torch.ones(2), torch.rand(4, 2))},
        {"high_confidence": 0.8, "alpha": 0.05, "n_samples": 30},
    ),
    NeuronStatistics: statistics(),
    CriticalNeurons: searched(),
    Comparison: Comparison(EVIL, {"CAN": searched(), "random": searched(None)}),
    Explanations: explained(),
}  # fmt: skip


def kinds(of: type[Result] = Result) -> Iterator[type[Result]]:
    """All results of the package."""
    for kind in of.__subclasses__():
        if kind.__module__.startswith("vlm_lens.") and kind is not TableResult:
            yield kind
        yield from kinds(kind)


for module in pkgutil.walk_packages(vlm_lens.__path__, "vlm_lens."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
KINDS = sorted({*kinds()}, key=lambda kind: kind.__name__)


def example(kind: type[Result]) -> Result:
    if issubclass(kind, TableResult):
        return kind(FRAME, PARAMETERS, (EVIL,))
    if issubclass(kind, LogitEffect) and kind is not DirectEffect:
        return kind({NAME: torch.ones(2)}, EVIL, token=3, position=4, logit=0.5)
    return EXAMPLES[kind]


def plain(found: Result) -> tuple[str, dict[str, Any]]:
    """All there is of a result, to compare."""
    written, tensors = found.packed()
    return repr(written), {name: tensor.tolist() for name, tensor in tensors.items()}


def test_each_kind_has_a_name_of_its_own():
    assert len({kind.KIND for kind in KINDS}) == len(KINDS) > 12


@pytest.mark.parametrize("kind", KINDS)
def test_it_comes_back_as_it_was(tmp_path, kind):
    found = example(kind)
    found.save(tmp_path)
    back = kind.load(tmp_path)
    assert type(back) is kind
    assert repr(plain(back)) == repr(plain(found))  # NaN is not itself, but reads the same
    if not isinstance(found, TableResult):
        assert repr(back) == repr(found)
        assert str(back) == str(found)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_readable_json_in_one_file(tmp_path, kind):
    example(kind).save(tmp_path)
    assert len([*tmp_path.glob("*.json")]) == 1
    content = json.loads((tmp_path / f"{kind.KIND}.json").read_text())
    assert content["kind"] == kind.KIND


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("unchecked")
def test_what_is_missing_or_damaged_is_refused_in_a_sentence(tmp_path, kind):
    with pytest.raises(FileNotFoundError, match=f"there is no result '{kind.KIND}'"):
        kind.load(tmp_path)
    example(kind).save(tmp_path)
    path = tmp_path / f"{kind.KIND}.json"
    whole = json.loads(path.read_text())
    for changed in ({}, {"nothing": 1}, dict.fromkeys(whole["fields"], 3.5)):
        path.write_text(json.dumps({**whole, "fields": changed}))
        with pytest.raises(ValueError, match=f"no result that {kind.__name__}.load can read"):
            kind.load(tmp_path)
    path.write_text(json.dumps({**whole, "version": 2}))
    with pytest.raises(ValueError, match="an earlier vlm_lens wrote it.*has to be made again"):
        kind.load(tmp_path)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not issubclass(kind, TableResult)])
def test_pages_show_no_text_as_code(kind):
    assert "<script" not in example(kind)._repr_html_()


def test_a_number_that_is_no_parameter_of_json_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"got object at fields\['parameters'\]\['a'\]"):
        replace(searched(), parameters={"a": object()}).save(tmp_path)
    assert not [*tmp_path.iterdir()]


# Packing ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Everything:
    """A field of each type."""

    number: int
    share: float
    maybe: float | None
    nothing: torch.Tensor | None
    pair: tuple[int, str]
    many: tuple[tuple[int, int], ...]
    by_types: dict[tuple[int, ...], np.ndarray]
    neurons: NeuronSet
    neuron: Neuron
    frame: pd.DataFrame
    anything: Any


def test_values_come_back_by_their_declared_types():
    neurons = NeuronSet.from_indices({NAME: [2, 1]}, sizes={NAME: 3})
    value = Everything(
        1, 2, None, None, (1, "a"), ((1, 2), (3, 4)), {(0, 1): np.arange(3), (): np.zeros(0)},
        neurons, Neuron(NAME, 1), FRAME, {"a": [1, None]},
    )  # fmt: skip
    written, tensors = packed_whole(value)
    back = unpacked(Everything, json.loads(json.dumps(written)), tensors)
    pd.testing.assert_frame_equal(back.frame, FRAME)
    assert [*back.neurons] == [*neurons]
    assert back.neurons.sizes == neurons.sizes
    assert list(back.by_types) == [(0, 1), ()]
    assert all(np.array_equal(back.by_types[key], value.by_types[key]) for key in back.by_types)
    same = {"number", "share", "maybe", "nothing", "pair", "many", "neuron", "anything"}
    assert {one.name for one in fields(value)} > same
    assert all(getattr(back, name) == getattr(value, name) for name in same)


@pytest.mark.parametrize(
    ("declared", "written"),
    [
        (int, "3"),
        (float, "3"),
        (str, 3),
        (tuple[str, ...], "abc"),
        (tuple[int, str], [1]),
        (dict[str, int], []),
        (dict[int, int], 3),
        (Measurement, [1]),
        (torch.Tensor, {"tensor": "missing"}),
        (Neuron, "nonsense"),
        (NeuronSet, {"neurons": []}),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_is_of_another_type_is_refused(declared, written):
    with pytest.raises((AttributeError, IndexError, KeyError, TypeError, ValueError)):
        unpacked(declared, written, {})


def test_a_long_table_is_cut_where_it_is_printed():
    long = TableResult(pd.DataFrame({"n": range(100)}))
    assert "... and 60 more rows; .table() has them all" in str(long)
    assert "60 more rows" in long._repr_html_()
    assert len(str(long).splitlines()) == 1 + 1 + 40 + 1
    assert "more rows" not in str(TableResult(pd.DataFrame({"n": range(40)})))
