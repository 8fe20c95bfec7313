"""The colour code and the embedded images."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny import picture
from vlm_lens.plots import style


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, (style.POSITIVE, 0.0)),
        (2.0, (style.POSITIVE, style.STRONGEST)),
        (-1.0, (style.NEGATIVE, style.STRONGEST / 2)),
        (-99.0, (style.NEGATIVE, style.STRONGEST)),
        (float("nan"), (style.POSITIVE, 0.0)),
    ],
)
def test_a_hue_is_a_sign_and_opacity_a_size(value: float, expected: tuple) -> None:
    assert style.tint(value, 2.0) == expected


def test_the_limit_ignores_what_is_not_a_number() -> None:
    assert style.colour_limit(np.array([1.0, -3.0, np.nan, np.inf])) == 3.0
    assert style.colour_limit(np.zeros(4)) == 1.0
    assert style.colour_limit(np.array([np.nan])) == 1.0


def test_zero_is_the_centre_unless_nothing_is_negative() -> None:
    assert style.value_range(np.array([-0.1, 4.0]), 4.0) == (-4.0, 4.0)
    assert style.value_range(np.array([0.0, 4.0]), 4.0) == (0.0, 4.0)
    signed, unsigned = style.colour_stops(-4.0), style.colour_stops(0.0)
    assert [place for place, _ in signed] == [0.0, 0.5, 0.5, 1.0]
    assert signed[-2:] == [(0.5, unsigned[0][1]), unsigned[1]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.int64])
def test_any_tensor_can_be_drawn(dtype: torch.dtype) -> None:
    values = style.to_numpy(torch.tensor([1, 2], dtype=dtype))
    assert values.dtype == np.float64
    assert values.tolist() == [1.0, 2.0]


def embedded(uri: str) -> tuple[str, Image.Image]:
    head, _, data = uri.partition(";base64,")
    return head, Image.open(io.BytesIO(base64.b64decode(data)))


def test_small_images_are_embedded_exactly_and_large_ones_smaller() -> None:
    small = picture(0)
    head, decoded = embedded(style.data_uri(small))
    assert head == "data:image/png"
    assert np.array_equal(np.asarray(decoded), np.asarray(small))
    head, decoded = embedded(style.data_uri(Image.new("RGB", (3000, 1500), "red")))
    assert head == "data:image/jpeg"
    assert decoded.size == (800, 400)


def test_the_backdrop_is_pale_grey() -> None:
    pale = np.asarray(style.backdrop(picture(0)).convert("RGB"))
    assert (pale[..., 0] == pale[..., 1]).all()
    assert pale.min() >= 140
