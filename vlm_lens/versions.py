"""The versions that reports, saved results and ``vlm-lens --version`` name."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("vlm-lens", "torch", "transformers", "transformer-lens")


def package_version(name: str) -> str:
    """The installed version of a package.

    Example:
        >>> package_version("no-such-package")
        'not installed'
    """
    try:
        return version(name)
    except PackageNotFoundError:  # vlm_lens itself, in a checkout that is not installed
        return "not installed"


def versions() -> dict[str, str]:
    """What a run depends on, by name."""
    installed = {name: package_version(name) for name in _PACKAGES}
    return {**installed, "Python": platform.python_version()}
