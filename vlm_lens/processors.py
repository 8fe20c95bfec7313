"""Processors with and without torchvision: images and text do without it, videos do not.

transformers gives every processor that reads videos a video processor, and neither builds nor
loads the processor without one; video processors need torchvision (and SmolVLM's also num2words).
Where those are missing, such a processor is built with a `NoVideo` in that place.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import transformers
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.utils import PushToHubMixin, cached_file
from transformers.utils.import_utils import is_torchvision_available
from transformers.video_processing_utils import VideoProcessorMixin

# In the order in which AutoProcessor asks them for the class of the processor.
_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")


class NoVideo(PushToHubMixin):
    """Stands where a processor keeps its video processor, and refuses every video.

    It keeps the settings of the video processor it stands for, so that a processor that is saved
    here and loaded where torchvision is installed has that video processor again.

    Args:
        settings: What the JSON file of the video processor says, where there is one.

    Example:
        >>> NoVideo()(["a.mp4"])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ImportError: Expected images and text, got a video: reading videos needs torchvision ...
    """

    _auto_class = None  # ProcessorMixin.save_pretrained asks every part for it
    model_input_names: list[str] = []

    def __init__(self, settings: dict[str, Any] | None = None) -> None:
        self.settings = dict(settings or {})
        # SmolVLM's chat template asks for these two before it knows whether there is a video.
        self.num_frames = self.settings.get("num_frames")
        self.fps = self.settings.get("fps")

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        raise ImportError(
            "Expected images and text, got a video: reading videos needs torchvision (SmolVLM: "
            "num2words too), and this processor was made without. Install it and load the "
            "processor again, or pass frames of the video as images."
        )

    def to_dict(self) -> dict[str, Any]:
        """What `save_pretrained` writes: the settings as they came."""
        return self.settings


def load_processor(path: str | Path, **hub_kwargs: Any) -> Any:
    """Load a processor, also where torchvision is missing and the processor reads videos.

    It is `AutoProcessor.from_pretrained` wherever that works. A processor that cannot be built
    for lack of torchvision comes as the same class, with the PIL image processor and with a
    `NoVideo` for its video processor.

    Args:
        path: A folder, or the name of a repository on the hub.
        **hub_kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, `trust_remote_code`.

    Raises:
        OSError: There is no such folder or repository, or no access to it (from transformers).

    Example:
        >>> from vlm_lens.loading import bundled_path
        >>> type(load_processor(bundled_path())).__name__
        'LlavaProcessor'
    """
    path = str(path)
    named = _named_class(path, hub_kwargs)
    if named is None or not _lacks_packages(named):
        return AutoProcessor.from_pretrained(path, **hub_kwargs)
    processor_class = _real_class(named)
    if "video_processor" not in processor_class.get_attributes():
        return processor_class.from_pretrained(path, **hub_kwargs)
    video, _ = VideoProcessorMixin.get_video_processor_dict(path, **hub_kwargs)
    return build_processor(
        processor_class,
        image_processor=AutoImageProcessor.from_pretrained(path, **hub_kwargs),
        tokenizer=AutoTokenizer.from_pretrained(path, **hub_kwargs),
        video_processor=NoVideo(video),
        **_settings(processor_class, path, hub_kwargs),
    )


def build_processor(
    processor_class: type,
    *,
    image_processor: Any,
    tokenizer: Any,
    chat_template: str | None = None,
    **settings: Any,
) -> Any:
    """Build a processor of `processor_class`, also where torchvision is missing.

    Args:
        processor_class: A processor class of transformers; `transformers.PixtralProcessor` is an
            empty placeholder without torchvision, and is then replaced by the real class.
        image_processor: For example a `...ImageProcessorPil`.
        tokenizer: The tokenizer.
        chat_template: The chat template, where there is one.
        **settings: What else the class takes, for example `image_seq_length`. A class that takes
            a `video_processor` gets a `NoVideo` unless one is given here.

    Example:
        >>> from transformers import AutoTokenizer, Qwen2VLProcessor
        >>> from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
        ...     Qwen2VLImageProcessorPil,
        ... )
        >>> from vlm_lens.loading import bundled_path
        >>> tokenizer = AutoTokenizer.from_pretrained(bundled_path())
        >>> processor = build_processor(
        ...     Qwen2VLProcessor, image_processor=Qwen2VLImageProcessorPil(), tokenizer=tokenizer
        ... )
        >>> type(processor) is Qwen2VLProcessor
        True
    """
    real_class = _real_class(processor_class)
    if "video_processor" in real_class.get_attributes():
        settings.setdefault("video_processor", NoVideo())
    if chat_template is not None:  # some classes do not take one
        settings["chat_template"] = chat_template
    processor = real_class.__new__(real_class)
    # `__init__` accepts nothing but a transformers video processor. The looser check lives on
    # this one object and for this one call only: what comes out is an ordinary instance.
    processor.check_argument_for_proper_class = _check_all_but_video(processor)
    with _num2words_standing_in(real_class):
        processor.__init__(image_processor=image_processor, tokenizer=tokenizer, **settings)
    del processor.check_argument_for_proper_class
    return processor


def _check_all_but_video(processor: Any) -> Any:
    check = processor.check_argument_for_proper_class

    def looser(name: str, argument: Any) -> Any:
        return NoVideo if isinstance(argument, NoVideo) else check(name, argument)

    return looser


def _named_class(path: str, hub_kwargs: dict[str, Any]) -> Any:
    """The class of transformers that AutoProcessor would take; None leaves it to AutoProcessor."""
    access = {key: value for key, value in hub_kwargs.items() if key != "trust_remote_code"}
    for name in (*_FILES, "config.json"):
        # Whatever cannot be read here, AutoProcessor cannot read either: it has the better errors.
        file = cached_file(
            path,
            name,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            **access,
        )
        config = {} if file is None else json.loads(Path(file).read_text(encoding="utf-8"))
        if hub_kwargs.get("trust_remote_code") and "AutoProcessor" in config.get("auto_map", {}):
            return None
        class_name = config.get("processor_class")
        if name == "config.json":
            class_name = class_name or PROCESSOR_MAPPING_NAMES.get(config.get("model_type", ""))
        if class_name is not None:
            return getattr(transformers, class_name, None)
    return None


def _settings(processor_class: Any, path: str, hub_kwargs: dict[str, Any]) -> dict[str, Any]:
    """What `processor_config.json` and the chat template say, as far as the class takes it."""
    config, _ = processor_class.get_processor_dict(path, **hub_kwargs)
    taken = inspect.signature(processor_class.__init__).parameters.keys()
    return {key: config[key] for key in taken & config.keys() - processor_class.get_attributes()}


def _lacks_packages(processor_class: Any) -> bool:
    """Whether transformers cannot build the class for lack of torchvision or num2words."""
    if _is_placeholder(processor_class):
        return True
    reads_videos = "video_processor" in processor_class.get_attributes()
    return reads_videos and not is_torchvision_available() or _lacks_num2words(processor_class)


def _lacks_num2words(processor_class: Any) -> bool:
    """Whether the class's file wants num2words, which it only uses for videos, and has it not."""
    namespace = vars(sys.modules[processor_class.__module__])
    return "num2words" in namespace and namespace["num2words"] is None


def _is_placeholder(processor_class: Any) -> bool:
    """Whether transformers gives an empty class in place of one whose packages are missing."""
    return bool(getattr(processor_class, "is_dummy", False))


def _real_class(processor_class: Any) -> Any:
    """The class itself, where transformers has put a placeholder for lack of torchvision.

    The file of such a class takes one function from the torchvision image processor of its
    model; the PIL one has the same function.
    """
    if not _is_placeholder(processor_class):
        return processor_class
    folder, _, model = processor_class.__module__.replace(".processing_", " ").partition(" ")
    pil = importlib.import_module(f"{folder}.image_processing_pil_{model}")
    with _standing_in(sys.modules, f"{folder}.image_processing_{model}", pil):
        module = importlib.import_module(processor_class.__module__)
    return getattr(module, processor_class.__name__)


@contextmanager
def _num2words_standing_in(processor_class: Any) -> Iterator[None]:
    """Let the class be built without num2words, which it demands though only videos need it."""
    if not _lacks_num2words(processor_class):
        yield
        return
    namespace = vars(sys.modules[processor_class.__module__])
    with _standing_in(namespace, "num2words", NoVideo()):
        yield


@contextmanager
def _standing_in(namespace: MutableMapping[str, Any], name: str, value: Any) -> Iterator[None]:
    """Set one name for the length of the block, and put back what was there."""
    absent = object()
    before = namespace.get(name, absent)
    namespace[name] = value
    try:
        yield
    finally:
        if before is absent:
            del namespace[name]
        else:
            namespace[name] = before
