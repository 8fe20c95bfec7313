from __future__ import annotations

import subprocess
import sys

import pytest

import vlm_lens


def test_every_public_name_can_be_imported():
    assert set(vlm_lens.__all__) == set(vlm_lens._HOMES) == set(dir(vlm_lens))
    for name in vlm_lens.__all__:
        assert getattr(vlm_lens, name).__name__ == name


def test_other_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'HookedVLMs'"):
        vlm_lens.HookedVLMs  # noqa: B018


def test_the_package_and_its_command_line_start_without_torch():
    code = "import sys, vlm_lens.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
