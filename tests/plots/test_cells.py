"""Cells are where their names say; what is missing is empty."""

from __future__ import annotations

import numpy as np
import pytest

from vlm_lens.plots.cells import Cell, cells


def test_cells_are_where_their_names_say():
    entries = [Cell("b", "y", 1.0, "one", "hint"), Cell("a", "x", 0.5, "half", "")]
    names = {"rows": {"a": "A <b>", "b": "B"}, "columns": {"x": "X", "y": "Y"}}
    figure = cells(entries, **names, title="<t>", colour_title="share")
    [heatmap] = figure.data
    np.testing.assert_array_equal(heatmap.z, [[0.5, np.nan], [np.nan, 1.0]])
    assert heatmap.text.tolist() == [["half", ""], ["", "one"]]
    assert heatmap.customdata[1][1] == "hint"
    assert (heatmap.zmin, heatmap.zmax) == (0, 1)
    assert figure.layout.yaxis.ticktext == ("A &lt;b&gt;", "B")
    assert "&lt;t&gt;" in figure.layout.title.text


def test_a_name_that_is_not_among_the_rows_is_refused():
    with pytest.raises(ValueError, match="'c' is not in list"):
        cells(
            [Cell("c", "x", 1, "", "")],
            rows={"a": "A"},
            columns={"x": "X"},
            title="",
            colour_title="",
        )
