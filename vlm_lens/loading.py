"""Loading a model and its processor by name, with an answer when that fails."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    AutoConfig,
    AutoModelForImageTextToText,
    AutoTokenizer,
)

from vlm_lens import shapes_smollm2
from vlm_lens.architectures import architecture_of
from vlm_lens.architectures.checks import check_model_types
from vlm_lens.by_name import check_hub_answers, is_folder
from vlm_lens.gguf import SMOLLM2, dequantised, smollm2_file
from vlm_lens.keywords import of_loading, refuse_unknown
from vlm_lens.processors import load_processor
from vlm_lens.whole_file import is_full

BUNDLED = "shapes-llava"
_OUR_OPTIONS = ("dtype", "device", "default_prepend_bos")


def bundled_path() -> Path:
    """Folder of the trained model that ships with the package."""
    return Path(str(files("vlm_lens"))) / "shapes_llava" / "weights"


def load_model_and_processor(
    name: str | Path,
    *,
    dtype: torch.dtype | str | None,
    device: str | torch.device | None,
    **kwargs: Any,
) -> tuple[Any, Any]:
    """Load a Hugging Face VLM and its processor; weights from safetensors files only.

    The configuration is read first, so that a model that is not supported is refused before its
    weights are downloaded.

    Raises:
        TypeError: The name is neither a text nor a path.
        OSError: The model can be neither reached nor found; the message says what to try.
        ArchitectureError: vlm_lens has no record of the model's class, or of a part of it.
        TypeError: There is no such option.
        ValueError: Both a device and a device map were given.
    """
    if device is not None and kwargs.get("device_map") is not None:
        raise ValueError(
            f"Expected device or device_map, got both ({device!r} and {kwargs['device_map']!r}): "
            "a device map says for each part of the model where it goes."
        )
    if str(name) == shapes_smollm2.NAME:
        return _put_together(dtype=dtype, device=device, **kwargs)
    gguf_file = kwargs.pop("gguf_file", None)
    if str(name) == SMOLLM2:
        path, gguf_file = smollm2_file()
    else:
        path = str(bundled_path()) if str(name) == BUNDLED else _checked(name, gguf_file)
    kwargs.setdefault("trust_remote_code", False)  # left open, transformers would ask on stdin
    hub = {
        key: kwargs[key]
        for key in ("revision", "token", "cache_dir", "local_files_only", "trust_remote_code")
        if key in kwargs
    }
    try:
        if not Path(path).is_dir():
            _check_reachable(path, file=gguf_file or "config.json", **hub)
        if gguf_file is not None:
            path = str(dequantised(path, gguf_file, **hub))
        config = AutoConfig.from_pretrained(path, **hub)
        class_name = _class_name(config)
        architecture = architecture_of(class_name, config)
        check_model_types(architecture, config)
        refuse_unknown("from_pretrained", kwargs, [*_OUR_OPTIONS, *of_loading(config)])
        _check_weights(Path(path))
        reads_text_alone = not architecture.media_parts()
        load = AutoTokenizer.from_pretrained if reads_text_alone else load_processor
        processor = load(path, **hub)
        model: Any = _model_class(class_name, config, **hub).from_pretrained(
            path, dtype=dtype or "auto", use_safetensors=True, **kwargs
        )
    except OSError as error:
        if is_full(error):  # which has nothing to do with the name
            raise
        raise OSError(_unreachable(name, error)) from error
    if gguf_file is not None:  # it is called what the user calls it, not what its floats are
        model.name_or_path = model.config.name_or_path = str(name)
    if device is not None:
        model = model.to(device)
    return model.eval(), processor


def _put_together(
    *, dtype: torch.dtype | str | None, device: str | torch.device | None, **options: Any
) -> tuple[Any, Any]:
    """The model that is put together from parts, and its processor."""
    from vlm_lens.shapes_smollm2.build import CONNECTOR, build_model, build_processor

    refuse_unknown("from_pretrained", options, [*_OUR_OPTIONS, "attn_implementation"])
    model: Any = build_model(CONNECTOR, dtype=dtype or "auto", **options)
    return (model if device is None else model.to(device)), build_processor()


def _checked(name: str | Path, gguf_file: str | None) -> str:
    """What transformers is to load; a folder that cannot be one of a model is refused at once."""
    if not isinstance(name, str | Path) or not str(name):
        raise TypeError(f"Expected the name or folder of a model, got {name!r}.")
    if not is_folder(name):
        return str(name)
    folder = Path(name).expanduser()
    if not folder.exists():
        raise FileNotFoundError(
            f"Expected a model, but there is no folder {str(name)!r}. {BUNDLED!r} is bundled and "
            "works offline."
        )
    if not folder.is_dir():
        raise NotADirectoryError(
            f"Expected the folder of a model, but {str(name)!r} is a file: name the folder that "
            "it is in."
        )
    if gguf_file is not None:
        if not (folder / gguf_file).is_file():
            raise FileNotFoundError(
                f"Expected the file {gguf_file!r} in the folder {str(name)!r}, but there is none."
            )
        return str(folder)
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"Expected a model in the folder {str(name)!r}, but it holds an adapter: load the "
            f"model that it is for, then call model.hf_model.load_adapter({str(name)!r})."
        )
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"Expected a model in the folder {str(name)!r}, but there is no config.json in it: "
            "name a folder that save_pretrained has written."
        )
    return str(folder)


def _check_weights(folder: Path) -> None:
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
        advice = "pickled ones can run code, convert them" if pickled else "copy all of its files"
        raise FileNotFoundError(
            f"there are no weights in {str(folder)!r}, which *.safetensors files hold: {advice}."
        )


def _check_reachable(
    name: str, *, file: str, token: Any = None, local_files_only: bool = False, **where: Any
) -> None:
    """Refuses a name of which nothing is here, where the hub gives no answer."""
    known = {key: where[key] for key in ("revision", "cache_dir") if where.get(key) is not None}
    try:
        is_kept = try_to_load_from_cache(name, file, **known) is not None
    except HFValidationError:
        is_kept = False
    if not is_kept and not local_files_only:
        check_hub_answers(name, kind="model", token=token)


def _class_name(config: Any) -> str:
    """The model's class, as its configuration names it or else as transformers would choose it."""
    if config.architectures:
        return config.architectures[0]
    mappings: Any = (MODEL_FOR_MULTIMODAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING)
    known = [mapping[type(config)].__name__ for mapping in mappings if type(config) in mapping]
    return known[0] if known else type(config).__name__


def _model_class(name: str, config: Any, *, trust_remote_code: bool, **_: Any) -> Any:
    """The class of that name, or what finds the class in the model's own code if that is trusted.

    `AutoModelForImageTextToText` does not know models of sounds.
    """
    if trust_remote_code and getattr(config, "auto_map", None):
        return AutoModelForImageTextToText
    return getattr(transformers, name, AutoModelForImageTextToText)


def _unreachable(name: str | Path, error: OSError) -> str:
    reason = str(error).strip().splitlines()[0].rstrip(".:")
    return (
        f"Could not load {str(name)!r}: {reason}. Expected {BUNDLED!r} (bundled, works offline), a "
        "folder with config.json and *.safetensors, or a model id on the Hugging Face hub (with "
        "network access, and after `hf auth login` for a gated model). If it was downloaded "
        "before, pass local_files_only=True."
    )
