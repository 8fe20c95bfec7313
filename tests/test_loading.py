from __future__ import annotations

import errno
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import Tiny
from vlm_lens import HookedVLM
from vlm_lens.architectures import ArchitectureError


@pytest.fixture
def folder(llava: Tiny, tmp_path: Path) -> Path:
    llava.hf.save_pretrained(tmp_path)
    llava.processor.save_pretrained(tmp_path)
    return tmp_path


def test_a_saved_model_loads_with_its_processor(llava: Tiny, folder: Path):
    model = HookedVLM.from_pretrained(folder)
    assert not model.training
    assert not model.blocks[0].training
    image = llava.inputs("image").images[0]
    inputs = model.prepare(images=image, text="what color ?")
    assert torch.equal(
        model(inputs), llava.model(llava.model.prepare(images=image, text="what color ?"))
    )
    assert model.cfg.model_name == str(folder)


def test_sharded_weights_and_another_dtype(llava: Tiny, tmp_path: Path):
    llava.hf.save_pretrained(tmp_path, max_shard_size="30KB")
    llava.processor.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    model = HookedVLM.from_pretrained(tmp_path, dtype=torch.bfloat16, device="cpu")
    assert model.cfg.dtype == model.W_E.dtype == torch.bfloat16
    model = HookedVLM.from_pretrained(str(tmp_path), attn_implementation="eager")
    assert model.hf_model.config._attn_implementation == "eager"


def test_pickled_weights_are_never_loaded(folder: Path, llava: Tiny):
    """The pickle would write a file when loaded; it must not."""
    trace = folder / "executed"

    class Malicious:
        def __reduce__(self):
            return (Path.touch, (trace,))

    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(OSError, match="safetensors"):
        HookedVLM.from_pretrained(folder)
    assert not trace.exists()


def test_remote_code_is_not_trusted(folder: Path):
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config"}
    config["model_type"] = "evil"
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(folder / 'trace')!r}, 'w')")
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        HookedVLM.from_pretrained(folder)
    assert not (folder / "trace").exists()


@pytest.mark.parametrize("name", ["no-such/model", "no/such/folder", "shapes-lava"])
def test_a_model_that_cannot_be_reached_says_what_to_try(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    asked: list[str] = []

    def repo_info(_: object, name: str, **__: object) -> None:
        asked.append(name)
        raise RuntimeError("no route")

    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", repo_info)
    with pytest.raises(OSError, match=r"Could not load.*shapes-llava.*bundled.*local_files_only"):
        HookedVLM.from_pretrained(name)
    assert len(asked) <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["SomethingElse"]}, "got SomethingElse"),
        ({"text_config": {"model_type": "gpt2"}}, "got 'gpt2'"),
        ({"vision_config": {"model_type": "dinov2"}}, "got 'dinov2'"),
    ],
)
def test_an_unsupported_model_is_refused_before_its_weights_are_read(
    folder: Path, changes: dict[str, Any], message: str
):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ArchitectureError, match=message):
        HookedVLM.from_pretrained(folder)


@pytest.mark.parametrize("name", ["./nope", "/no/such/folder", "../nope", "~/nope", Path("nope")])
def test_a_folder_that_is_not_there_is_said_so_without_asking_anybody(
    name: str | Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("vlm_lens.loading.check_hub_answers", pytest.fail)
    with pytest.raises(FileNotFoundError, match=f"there is no folder '{name}'"):
        HookedVLM.from_pretrained(name)


def test_folders_without_a_model_say_what_is_missing(folder: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="there is no config.json in it"):
        HookedVLM.from_pretrained(tmp_path / "empty")
    with pytest.raises(NotADirectoryError, match="is a file: name the folder"):
        HookedVLM.from_pretrained(str(folder / "config.json"))
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match="there are no weights in .*copy all of its files"):
        HookedVLM.from_pretrained(folder)


def test_an_empty_text_is_no_name():
    with pytest.raises(TypeError, match="Expected the name or folder of a model"):
        HookedVLM.from_pretrained("")


@pytest.mark.parametrize("name", ["shapes-llava", Path("some/folder")])
def test_a_name_in_place_of_a_model_says_how_to_load_it(name: str | Path):
    with pytest.raises(TypeError, match=f"from_pretrained\\('{name}'\\) loads one"):
        HookedVLM(name)


def test_a_disk_that_is_full_is_not_the_name_s_fault(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "cache/model.safetensors")

    monkeypatch.setattr("vlm_lens.loading.load_processor", full)
    with pytest.raises(OSError, match="No space left on device: 'cache/model.safetensors'"):
        HookedVLM.from_pretrained(folder)
