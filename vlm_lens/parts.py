"""What a model is made of: towers, a connector, a language model, and which of them it has."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import nn

from vlm_lens.architectures import Architecture
from vlm_lens.hooks import ArchitectureError, Place, Tap
from vlm_lens.inputs import Inputs

Kind = Literal["tower", "connector", "text"]
_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("vision_encoder", "audio_encoder"), "tower"),
    **dict.fromkeys(("qformer", "projector"), "connector"),
}


class Part(NamedTuple):
    """One part of a model.

    Attributes:
        name: What its hook names start with; "" for a language model at the root.
        kind: ``"tower"``, ``"connector"`` or ``"text"``.
        module: What holds its hook points: the model itself for the part at the root.
        n_blocks: How many blocks it has.
    """

    name: str
    kind: Kind
    module: Any
    n_blocks: int


def parts_of(model: Any) -> list[Part]:
    """The parts of a `HookedVLM`, from image to text.

    Args:
        model: The model.

    Example:
        >>> from vlm_lens import HookedVLM
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> [(part.name, part.kind, part.n_blocks) for part in parts_of(model)]
        [('vision_encoder', 'tower', 4), ('projector', 'connector', 0), ('', 'text', 6)]
    """
    names = list(model.architecture.parts())
    if model.architecture.projector is not None:
        before_text = [name for name in names if name in _KINDS]
        names.insert(len(before_text), "projector")
    modules = {name: getattr(model, name) if name else model for name in names}
    return [
        Part(name, _KINDS.get(name, "text"), module, len(getattr(module, "blocks", ())))
        for name, module in modules.items()
    ]


@dataclass(frozen=True)
class Text:
    """The language model: where its layers are, and what lies around them.

    Attributes:
        stack: What has its blocks, its `hook_embed` and its final norm: the `HookedVLM` itself, or
            the decoder of a text model that has an encoder too.
        place: Where the module is that runs the layers.
        head: Where the smallest module is that holds both the layers and the unembedding: the
            Hugging Face model itself, or the text model inside of it that has a head of its own.
        has_encoder: Whether it is the decoder of a text model that has an encoder too.
        layers_place: Where the list is that it keeps its layers in.
        norm_place: Where the norm is that comes after the layers.
        entry: The embedding's hook point, where it lies at the entry of the first layer.
    """

    stack: Any
    place: Place
    head: Place
    has_encoder: bool
    layers_place: Place
    norm_place: Place | None
    entry: Tap | None

    @property
    def layers(self) -> nn.ModuleList:
        """The Hugging Face layers, as they are now."""
        return self.layers_place.module

    @property
    def prefix(self) -> str:
        """What its hook names start with: nothing, or ``decoder.``."""
        return "decoder." if self.has_encoder else ""

    def keyword(self, name: str) -> str:
        """What a forward calls the tokens that are predicted, and all about them.

        Args:
            name: ``"input_ids"`` or ``"attention_mask"``: that of a model without an encoder.
        """
        return f"decoder_{name}" if self.has_encoder else name

    def n_before(self, prompts: Inputs) -> int:
        """How many of the tokens that `generate` returns come before an answer.

        Args:
            prompts: What it is given: all of it, or beside an encoder the start token alone.
        """
        return 1 if self.has_encoder else prompts.shape[1]


def find_text(hf_model: nn.Module, architecture: Architecture, stack: Any) -> Text | None:
    """The language model of a model, by the record of its family; None where it has none.

    Args:
        hf_model: The Hugging Face model.
        architecture: Its record.
        stack: What has the language model's blocks.
    """
    paths = architecture.language_model
    if paths is None or architecture.unembed is None:
        return None
    root, inside = Place(hf_model), paths.blocks.split(".")
    shared = os.path.commonprefix([inside, architecture.unembed.split(".")])
    return Text(
        stack=stack,
        place=root.at(".".join(inside[:-1])),
        head=root.at(".".join(shared)),
        has_encoder=architecture.text_encoder is not None,
        layers_place=root.at(paths.blocks),
        norm_place=None if paths.ln_final is None else root.at(paths.ln_final),
        entry=stack.hook_embed if paths.start is None and paths.embedded is None else None,
    )


def given_by(output: Any) -> Any:
    """What a Hugging Face model gives: its logits, or the states of a tower without a head.

    Args:
        output: The output of its forward.
    """
    logits = getattr(output, "logits", None)
    return output.last_hidden_state if logits is None else logits


def text_for(model: Any, what: str) -> Text:
    """The language model of a `HookedVLM`, for something that needs one.

    Args:
        model: The model.
        what: What needs it, for the message.

    Raises:
        ArchitectureError: The model is a tower alone.
    """
    if model.text is None:
        raise ArchitectureError(
            f"Expected a model with a language model for {what}, but {model.cfg.architecture} is a "
            "tower alone, which writes no text."
        )
    return model.text


def decoder_for(model: Any, what: str, *, instead: str = "") -> Text:
    """The language model of a `HookedVLM`, for something that needs one stream, in a decoder.

    Args:
        model: The model.
        what: What needs it, for the message.
        instead: What to do with another model: a sentence.

    Raises:
        ArchitectureError: The model is a tower alone.
        ValueError: Its text model has an encoder too.
    """
    text = text_for(model, what)
    if text.has_encoder:
        refused = (
            f"Expected a decoder alone for {what}, but the text model of this "
            f"{model.cfg.architecture} is an encoder with a decoder, which has two streams."
        )
        raise ValueError(f"{refused} {instead}".rstrip())
    return text
