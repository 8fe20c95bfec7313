"""A reducer has one fingerprint in every process, and another one for everything that it is."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch

from vlm_lens.passes import Rows, Total, mean_of, sum_of
from vlm_lens.passes.fingerprint import fingerprint


def scaled(factor: float):
    return lambda reading, sample, rows: factor * reading.rows(rows)  # noqa: ARG005


DIFFERENT = [
    Total(mean_of),
    Total(sum_of),
    Rows(mean_of),
    Total(mean_of, over="image"),
    Total(scaled(1.0)),
    Total(scaled(2.0)),
    Total(partial(mean_of, sample=1)),
    torch.zeros(2),
    torch.ones(2),
    torch.zeros(2, dtype=torch.float64),
    {"a": 1},
    {"a": 2},
    frozenset({"a", "b", "c"}),
    (1, 2),
]


def test_what_differs_has_another_one() -> None:
    assert len({fingerprint(value) for value in DIFFERENT}) == len(DIFFERENT)


@pytest.mark.parametrize("value", DIFFERENT[:4])
def test_what_is_the_same_has_the_same_one(value: Total) -> None:
    assert fingerprint(value) == fingerprint(replace(value))


def test_every_process_has_the_same_one() -> None:
    code = (
        "from vlm_lens.passes import Total, mean_of\n"
        "from vlm_lens.passes.fingerprint import fingerprint\n"
        "print(fingerprint([Total(mean_of), frozenset('abc'), lambda x: x in {'a', 'b', 'c'}]))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1
