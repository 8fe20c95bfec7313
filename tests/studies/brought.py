"""Packages that bring studies, as they lie where Python finds them once they are installed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent

GROUP = "vlm_lens.studies"

STUDY = '''
from collections.abc import Sequence

from vlm_lens.passes import Run
from vlm_lens.studies import study


@study("widths", title="Widths", paper="none", n=3)
def widths(model, samples, *, least: int = 1, run: Run = Run()):
    """How wide layers are.

    Args:
        least: The narrowest that counts.
    """
'''
"""A module with a study that does nothing."""


def bring(
    folder: Path,
    files: Mapping[str, str],
    points: Mapping[str, str],
    *,
    name: str = "brought",
) -> Path:
    """Writes a package and what its installation leaves beside it.

    Args:
        folder: Where Python looks for packages.
        files: What is in the package, by the files' names.
        points: Its studies' entry points: names and places.
        name: What the package is called.

    Returns:
        The folder.
    """
    package = folder / name
    package.mkdir(parents=True, exist_ok=True)
    for file, text in {"__init__.py": "", **files}.items():
        (package / file).write_text(dedent(text), encoding="utf-8")
    describe(folder, points, name=name)
    return folder


def describe(folder: Path, points: Mapping[str, str], *, name: str) -> None:
    """Writes what an installation leaves beside a package or module; see `bring`."""
    about = folder / f"{name}-1.0.dist-info"
    about.mkdir(parents=True, exist_ok=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    listed = "".join(f"{name} = {place}\n" for name, place in points.items())
    (about / "entry_points.txt").write_text(f"[{GROUP}]\n{listed}")
