"""What a family takes besides text: images or sounds, and how they are written into a prompt."""

from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase, ProcessorMixin


@dataclass(frozen=True)
class Medium:
    """How one family of models takes its images or sounds.

    Attributes:
        name: "image", "audio", or "nothing" of a model that reads text alone.
        token: The placeholder of one of them in a prompt.
        token_id: The id at their positions; None where a mask marks them instead.
        in_prompt: Whether the prompt holds the placeholders. Else the processor puts the positions
            of one image in front of it.
    """

    name: Literal["image", "audio", "nothing"]
    token: str
    token_id: int | None
    in_prompt: bool

    @property
    def modality(self) -> Literal["image", "audio"]:
        """What its positions are."""
        return "audio" if self.name == "audio" else "image"

    @property
    def is_taken(self) -> str:
        """What the model takes, in words for a message."""
        if self.name == "nothing":
            return "takes text, and nothing else"
        return f"takes {self.name}s besides text, and nothing else"


TEXT_ALONE = Medium("nothing", "\0", None, False)
"""The medium of a language model alone, with a placeholder that no text holds."""


def tokenizer_of(processor: Any) -> Any:
    """A processor's tokenizer: that of a language model alone is its own processor.

    Example:
        >>> from vlm_lens import HookedVLM
        >>> processor = HookedVLM.from_pretrained("shapes-llava").processor
        >>> tokenizer_of(processor) is tokenizer_of(tokenizer_of(processor))
        True
    """
    return processor if is_tokenizer(processor) else processor.tokenizer


def is_tokenizer(processor: Any) -> bool:
    """Whether a processor reads text alone."""
    return isinstance(processor, PreTrainedTokenizerBase)


def medium_of(processor: Any, config: Any) -> Medium:
    """Returns what a processor and its model take besides text.

    Raises:
        TypeError: The processor lacks a part.
    """
    if is_tokenizer(processor) and config.get_text_config() is config:
        return TEXT_ALONE
    is_audio = hasattr(processor, "audio_token") and not hasattr(processor, "image_processor")
    part = "feature_extractor" if is_audio else "image_processor"
    for name in (part, "tokenizer"):
        if getattr(processor, name, None) is None:
            raise TypeError(
                f"expected a processor with an image processor and a tokenizer, but "
                f"{type(processor).__name__} has no {name}: load it with AutoProcessor"
            )
    if is_audio:
        return Medium("audio", str(processor.audio_token), config.audio_token_id, True)
    # A processor that knows how to replace a placeholder finds it in the prompt.
    replaces = type(processor).replace_image_token is not ProcessorMixin.replace_image_token
    token = getattr(processor, "image_token", None) or processor.boi_token
    return Medium("image", str(token), getattr(config, "image_token_id", None), replaces)
