"""What the numbers depend on besides the code: processor, load, versions."""

from __future__ import annotations

import importlib.util
import os
import platform
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "transformers", "transformer-lens", "nnsight")


def surroundings() -> dict[str, Any]:
    """The machine and the software, at the moment of the call."""
    packages = {name: version(name) for name in PACKAGES if installed(name)}
    return {
        "date": date.today().isoformat(),
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "versions": {"Python": platform.python_version(), **packages},
    }


def installed(package: str) -> bool:
    """Whether a contender's package is there; nnsight is an extra."""
    return importlib.util.find_spec(package.replace("-", "_")) is not None


def cpu_name() -> str:
    """The processor as Linux names it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
