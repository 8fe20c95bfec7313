"""The widget in Jupyter, with a kernel: what one side chooses, the other one knows."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PAGES = {"jupyterlab": "lab/tree", "notebook": "notebooks"}
"""By front end, where it shows a notebook."""

NAME = "blocks.3.mlp.hook_post"
CELLS = [
    f"""
import torch
torch.set_num_threads(1)
from vlm_lens import HookedVLM, explore, load_samples
from vlm_lens.shapes_llava import IMAGES
model = HookedVLM.from_pretrained("shapes-llava")
sample = load_samples(IMAGES)[3]
inputs = model.prepare(images=sample.images, text=sample.text)
explorer = explore(model, inputs, neuron="{NAME}[5]")
explorer
""",
    'print("PYTHON", explorer.neuron, list(map(str, explorer.selection)))',
    f'explorer.neuron = "{NAME}[17]"; explorer.selection = '
    f"[explorer.neuron, *explorer.selection]; "
    "from vlm_lens.analyses import direct_effect; "
    "explorer.selection = direct_effect(model, inputs).top(60); print('SET')",
]


@pytest.fixture(params=PAGES)
def lab(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of a notebook in JupyterLab, or in Notebook 7, on this machine."""
    front_end = request.param
    pytest.importorskip(front_end, reason=f"{front_end} is not installed")
    cells = [
        {
            "cell_type": "code",
            "id": f"c{i}",
            "metadata": {},
            "outputs": [],
            "execution_count": None,
            "source": source.strip(),
        }
        for i, source in enumerate(CELLS)
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "explorer.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # What would ask about news, in front of the notebook.
    settings = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
    (tmp_path / "jupyter_config_dir" / "labconfig").mkdir(parents=True)
    config = tmp_path / "jupyter_config_dir" / "labconfig" / "page_config.json"
    config.write_text(json.dumps(settings), encoding="utf-8")
    folders = {
        "HOME",
        "JUPYTER_CONFIG_DIR",
        "JUPYTER_DATA_DIR",
        "JUPYTER_RUNTIME_DIR",
        "IPYTHONDIR",
    }
    own = {name: str(tmp_path / name.lower()) for name in folders}
    path = {"PYTHONPATH": str(Path(__file__).parents[2]), "HF_HUB_OFFLINE": "1"}
    with (tmp_path / "lab.log").open("wb") as log:
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", front_end, "--no-browser", "--ip=127.0.0.1"),
                *(f"--port={port}", "--ServerApp.port_retries=0", "--IdentityProvider.token="),
                *(f"--ServerApp.root_dir={tmp_path}", "--allow-root"),
            ],
            env={**os.environ, **own, **path},
            stdout=log,
            stderr=log,
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/api", server, tmp_path / "lab.log")
        yield f"http://127.0.0.1:{port}/{PAGES[front_end]}/explorer.ipynb"
    finally:
        server.terminate()  # it ends its kernels first
        try:
            server.wait(timeout=10)
        except subprocess.TimeoutExpired:
            server.kill()


def _wait_for(address: str, server: subprocess.Popen, log: Path) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(300):
        assert server.poll() is None, log.read_text(encoding="utf-8")[-2000:]
        try:
            with opener.open(address, timeout=2):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"Jupyter did not start:\n{log.read_text(encoding='utf-8')[-2000:]}")


class Notebook:
    """The notebook's cells in the browser."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.cells = page.locator(".jp-Notebook .jp-CodeCell")
        self.cells.nth(len(CELLS) - 1).wait_for()

    def run(self, number: int) -> None:
        """Runs a cell; again if the page did not listen to its keys yet."""
        cell = self.cells.nth(number)
        prompt = cell.locator(".jp-InputArea-prompt")
        before = prompt.inner_text()
        for _ in range(20):
            cell.locator(".jp-InputArea-editor").click()
            self.page.keyboard.press("Control+Enter")
            for _ in range(20):
                if prompt.inner_text() != before:
                    return
                self.page.wait_for_timeout(100)
        raise AssertionError(f"cell {number} did not start")

    def said(self, number: int, pattern: str) -> str:
        """Runs a cell, again where the kernel was not told yet, until it says something."""
        for _ in range(20):
            self.run(number)
            output = self.cells.nth(number).locator(".jp-OutputArea-output")
            output.first.wait_for()
            self.page.wait_for_timeout(250)
            if re.search(pattern, text := output.first.inner_text()):
                return text
        raise AssertionError(f"expected {pattern!r}, got {text!r}")


@pytest.mark.full
def test_browser_and_kernel_are_linked_both_ways(lab: str, local: Callable[..., Any]) -> None:
    watched = local(lab, viewport={"width": 1300, "height": 1100})
    page = watched.page
    page.set_default_timeout(60_000)
    notebook = Notebook(page)
    if page.locator("#jp-main-statusbar").count():  # which Notebook has none of
        page.get_by_text("| Idle").first.wait_for()
    notebook.run(0)
    page.wait_for_selector(f".vx[data-ready][data-neuron='{NAME}[5]']")

    # From the browser to Python.
    page.get_by_label("neuron", exact=True).fill("11")
    page.keyboard.press("Enter")
    page.wait_for_selector(f".vx[data-neuron='{NAME}[11]']")
    page.get_by_role("button", name="Keep", exact=True).click()
    notebook.said(1, rf"PYTHON {re.escape(NAME)}\[11\] \['{re.escape(NAME)}\[11\]'\]")
    page.get_by_role("slider").press("Home")  # not a key of JupyterLab's
    page.wait_for_function("() => !document.querySelector('.vx').dataset.neuron.endsWith('[11]')")

    # From Python to the browser.
    notebook.said(2, "SET")
    page.wait_for_selector(f".vx[data-neuron='{NAME}[17]']")
    page.get_by_role("button", name="Ablate all 60").click()

    # Without what writes "no" into the last position, the model says "yes".
    page.locator(".vx-changed").wait_for()
    assert page.locator(".vx-answer").all_inner_texts() == ["no", "yes"]
    rows = page.locator(".vx tbody tr")
    assert {row.split()[0] for row in rows.all_inner_texts()} >= {"no", "yes"}

    page.locator(".vx-patch").nth(20).click()
    page.locator(".vx-neuron").nth(2).click()
    page.wait_for_function(
        "name => document.querySelector('.vx').dataset.neuron !== name", arg=f"{NAME}[17]"
    )
    near = ("http://127.0.0.1:", "ws://127.0.0.1:")
    assert [asked for asked in watched.requests if not asked.startswith(near)] == []
