"""A study's command on tiny data, for the standard tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.studies.standard import Trial
from vlm_lens.studies.options import Study


@pytest.fixture
def trial(study: Study, tmp_path: Path) -> Trial:
    """Of a study that the test is parametrised by."""
    return Trial.of(study, tmp_path / "out")
