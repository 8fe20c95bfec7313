"""Results side by side: what the table says, and that all of it survives a disk."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from tests import fake_critical
from vlm_lens.analyses.comparison import Comparison, compared_at
from vlm_lens.analyses.critical import CriticalNeurons
from vlm_lens.masking.measurement import Measurement, Stages
from vlm_lens.neurons import NeuronSet

NAME = "blocks.1.hook_mlp_out"


def result(
    k: int | None, indices: list[int], ratios: dict[int, float], **changes
) -> CriticalNeurons:
    """A search that measured the ratio of perplexities, and where it was high a similarity."""
    curve = tuple(
        Measurement(
            at,
            {"perplexity": 2 * ratio, "perplexity_ratio": ratio}
            | ({"similarity": 0.1} if ratio >= 10 else {}),
            ratio >= 10,
        )
        for at, ratio in ratios.items()
    )
    given = {
        "method": "",
        "k": k,
        "ranking": NeuronSet.from_indices({NAME: indices}, sizes={NAME: 9}),
        "curve": curve,
        "stages": Stages(1 if k else None, k, "by eye"),
        "is_monotone": True,
    }
    return CriticalNeurons(**(given | changes))


def example() -> Comparison:
    return Comparison(
        "Against others",
        {
            "CAN": result(2, [7, 2, 5, 1], {0: 1.0, 1: 3.0, 2: 50.0, 3: math.inf}),
            "random": result(None, [3, 7, 2, 0], {0: 1.0, 2: 1.5, 4: 2.0}, notes=("none at all",)),
            "short": result(None, [2], {0: 1.0, 1: 1.0}),
            "strange": result(4, [2, 7, 1, 8], {0: 1.0, 2: 30.0, 4: 60.0}, is_monotone=False),
        },
    )


def test_the_table_compares_at_the_first_results_k():
    expected = pd.DataFrame(
        {
            "search": ["CAN", "random", "short", "strange"],
            "k*": pd.array([2, None, None, 4], dtype="Int64"),
            "degradation": pd.array([1, None, None, 1], dtype="Int64"),
            "ranked": [4, 4, 1, 4],
            "monotone": [True, True, True, False],
            "shared": [2, 0, 0, 2],
            "shared at 2": [2, 1, 1, 2],
            "collapsed at 2": pd.array([True, False, None, True], dtype="boolean"),
            "perplexity_ratio at 2": [50.0, 1.5, math.nan, 30.0],
            "similarity at 2": [0.1, math.nan, math.nan, 0.1],
        }
    )
    assert example().k == 2
    pd.testing.assert_frame_equal(example().table(), expected)


def test_without_a_collapse_it_compares_where_the_first_ended():
    results = example().results
    turned = Comparison("turned", {label: results[label] for label in reversed(results)})
    alone = Comparison("alone", {"random": results["random"]})
    assert (turned.k, alone.k, compared_at(results["random"])) == (4, 4, 4)
    table = alone.table()
    assert table["perplexity_ratio at 4"].tolist() == [2.0]
    assert table["k*"].isna().all()
    assert table["collapsed at 4"].tolist() == [False]


def test_columns_of_metrics_that_only_some_measured_are_numbers():
    results = {"one": result(None, [1], {0: 1.0}), "two": example()["CAN"]}
    table = Comparison("", results).table()
    assert list(table)[-2:] == ["perplexity_ratio at 0", "similarity at 0"]
    assert table["similarity at 0"].dtype == float
    assert table["similarity at 0"].isna().all()


def test_it_is_a_mapping_in_order():
    comparison = example()
    assert list(comparison) == ["CAN", "random", "short", "strange"]
    assert len(comparison) == 4
    assert comparison["short"] is comparison.results["short"]
    with pytest.raises(KeyError):
        comparison["long"]


def test_nothing_is_not_compared():
    with pytest.raises(ValueError, match="at least one result to compare, got none: k. by layer"):
        Comparison("k* by layer", {})


# On disk ------------------------------------------------------------------------------------------


def assert_equal(found: Comparison, expected: Comparison) -> None:
    assert found.title == expected.title
    assert list(found) == list(expected)
    pd.testing.assert_frame_equal(found.table(), expected.table())
    for label, result in expected.items():
        again = found[label]
        for name in result.__dataclass_fields__:
            if name not in ("ranking", "curve"):
                assert getattr(again, name) == getattr(result, name), (label, name)
        assert list(again.ranking) == list(result.ranking)
        assert again.ranking.sizes == result.ranking.sizes
        assert repr(again.curve) == repr(result.curve)  # NaN is not equal to itself


def test_what_is_saved_is_what_is_loaded(tmp_path: Path):
    rich = fake_critical.result(k=12, infinite_from=13)
    labels = ['<b>"a" & b</b>', "nan", "inf", "ünïcode/../x", ""]
    results = {label: replace(rich, method=label) for label in labels}
    for comparison in (example(), Comparison("k* <by> & 'layer'", results)):
        folder = tmp_path / str(len(comparison)) / "deeper"
        comparison.save(folder)
        assert_equal(Comparison.load(folder), comparison)


def test_saving_again_replaces_what_was_there(tmp_path: Path):
    example().save(tmp_path)
    shorter = Comparison("shorter", {"random": example()["random"]})
    shorter.save(tmp_path)
    assert_equal(Comparison.load(tmp_path), shorter)


def test_more_than_a_hundred_results(tmp_path: Path):
    one = example()["short"]
    many = Comparison("many", {str(i): replace(one, method=str(i)) for i in range(101)})
    many.save(tmp_path)
    assert [found.method for found in Comparison.load(tmp_path).values()] == list(many)


def test_what_is_not_there_or_damaged_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="comparison"):
        Comparison.load(tmp_path)
    example().save(tmp_path)
    path = tmp_path / "comparison.json"
    content = json.loads(path.read_text())
    one = {"title": "x", "results": {"CAN": {"method": "CAN"}}}
    for fields in ({"title": "x"}, {"results": {}}, {"title": "x", "results": {}}, one):
        path.write_text(json.dumps({**content, "fields": fields}))
        with pytest.raises(ValueError, match="Comparison.load can read.*Write it with"):
            Comparison.load(tmp_path)
    path.write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        Comparison.load(tmp_path)


# Looking at it ------------------------------------------------------------------------------------


def test_it_reads_as_text():
    comparison = example()
    assert repr(comparison) == (
        "Comparison(Against others; k* of CAN: 2, random: none, short: none, strange: 4)"
    )
    lines = str(comparison).splitlines()
    assert lines[0] == repr(comparison)
    assert lines[2].split() == ["CAN", "2", "1", "4", "True", "2", "2", "True", "50", "0.1"]
    assert "<NA>" in lines[3]
    assert lines[-1] == "Note: random: none at all"


def test_html_is_escaped():
    evil = "<script>alert(1)</script>"
    noted = replace(example()["CAN"], notes=(evil,))
    html = Comparison(evil, {evil: noted, "other": noted})._repr_html_()
    assert "<script" not in html
    assert html.count("&lt;script&gt;") == 2 + 1 + 1 + 2  # headline, cell, label, notes
    assert html.count("<tr") == 3


def test_html_without_notes_has_no_list():
    results = {"CAN": example()["CAN"]}
    html = Comparison("t", results)._repr_html_()
    assert "<ul>" not in html
    assert "inf" not in html  # k = 3 is not in the table


def test_all_curves_are_drawn():
    figure = example().plot()
    names = " ".join(str(trace.name) for trace in figure.data)
    for label in ("random", "short", "strange"):
        assert label in names
    assert "CAN" in figure.layout.title.text
    assert len(Comparison("one", {"CAN": example()["CAN"]}).plot().data) > 0
