"""Studies of other packages: found by entry points, and left out where they cannot be read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.studies.brought import STUDY, bring
from vlm_lens.cli import main
from vlm_lens.studies.known import OWN, BrokenStudyError, studies

NAMES = [*OWN]


def found(folder: Path, monkeypatch: pytest.MonkeyPatch, points: dict[str, str]) -> list[str]:
    """The names of all studies, and why others are none."""
    files = {"of.py": STUDY, "bad.py": "def broken(:", "other.py": STUDY}
    monkeypatch.syspath_prepend(bring(folder, files, points))
    return [str(s) if isinstance(s, BrokenStudyError) else s.name for s in studies()]


def test_ours_come_first_and_can_all_be_read() -> None:
    known = [*studies()]
    assert not [study for study in known if isinstance(study, BrokenStudyError)]
    assert [study.name for study in known][: len(NAMES)] == NAMES  # pyright: ignore


def test_a_study_of_another_package_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert found(tmp_path, monkeypatch, {"widths": "brought.of:widths"}) == [*NAMES, "widths"]
    with pytest.raises(SystemExit, match="0"):
        main(["widths", "--help"])
    said, err = capsys.readouterr()
    assert "How wide layers are. (none)" in said
    assert "the narrowest that counts (default: 1)" in said
    assert err == ""
    assert "brought.of" not in sys.modules


@pytest.mark.parametrize(
    ("name", "place", "why"),
    [
        ("widths", "brought.none:widths", "there is no source of 'brought.none'"),
        ("widths", "nothing.of:widths", "there is no source of 'nothing.of'"),
        ("widths", "brought.of:none", "'brought.of' has no function 'none'"),
        ("widths", "brought.bad:broken", "the source of 'brought.bad' cannot be read: "),
        ("widths", "brought.of", "expected a place such as 'my_package.my_module:my_function'"),
        ("wide", "brought.of:widths", "it declares itself as 'widths'"),
        ("culture", "brought.of:widths", "it declares itself as 'widths'"),
    ],
)
def test_one_that_cannot_be_read_is_left_out_with_a_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    place: str,
    why: str,
) -> None:
    points = {name: place, "other": "brought.other:widths"}
    known = found(tmp_path, monkeypatch, points)
    assert known[: len(NAMES)] == NAMES
    left_out = known[len(NAMES) :]
    assert any(said.startswith(f"the study {name!r} of {place!r}: {why}") for said in left_out)
    assert any("'brought.other:widths': it declares itself as" in said for said in left_out)
    with pytest.raises(SystemExit, match="0"):
        main(["culture", "--help"])
    notes = capsys.readouterr().err.splitlines()
    assert notes == [f"vlm-lens: note: left out is {said}" for said in left_out]
    assert len(notes) == 2


@pytest.mark.parametrize("name", ["culture", "demo", "explore", "models"])
def test_a_study_is_not_called_like_another_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    source = STUDY.replace('"widths"', f'"{name}"')
    bring(tmp_path, {"of.py": source}, {name: "brought.of:widths"})
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    said, err = capsys.readouterr()
    assert "How wide layers are" not in said
    assert err.count("\n") == 1
    assert "there is a command of that name already" in err


def test_of_two_packages_with_one_study_the_second_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(tmp_path, {"of.py": STUDY}, {"widths": "again.of:widths"}, name="again")
    names = found(tmp_path, monkeypatch, {"widths": "brought.of:widths"})
    assert names[: len(NAMES) + 1] == [*NAMES, "widths"]
    assert "there is a command of that name already" in names[-1]


@pytest.mark.sampled
@pytest.mark.parametrize("options", [["--help"], *([name, "--help"] for name in NAMES)])
def test_help_imports_no_study_and_no_torch(tmp_path: Path, options: list[str]) -> None:
    bring(tmp_path, {"of.py": "raise SystemExit\n" + STUDY}, {"widths": "brought.of:widths"})
    code = (
        "import sys; from vlm_lens.cli import main\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        f"try: main({options!r})\n"
        "except SystemExit: pass\n"
        "wrong = {'torch', 'transformers', 'pandas', 'brought', 'vlm_lens.analyses'}\n"
        "sys.exit(f'imported {wrong & set(sys.modules)}' if wrong & set(sys.modules) else 0)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "widths" in ended.stdout if options == ["--help"] else "usage" in ended.stdout


def test_help_lists_studies_with_percentages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = STUDY.replace("least: int = 1", "least: str = '5%'").replace("wide", "100% wide")
    monkeypatch.syspath_prepend(bring(tmp_path, {"of.py": source}, {"widths": "brought.of:widths"}))
    for options in (["--help"], ["widths", "--help"]):
        with pytest.raises(SystemExit, match="0"):
            main(options)
        assert "100% wide" in capsys.readouterr().out
