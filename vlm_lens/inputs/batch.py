"""A batch that a vision-language model accepts, with what is known about its positions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vlm_lens.counted import counted
from vlm_lens.inputs.owners import PositionOwners
from vlm_lens.inputs.positions import PER_POSITION, lengthen, positions_in_text
from vlm_lens.inputs.token_kinds import Kind
from vlm_lens.inputs.token_map import TokenMap


@dataclass(frozen=True, eq=False, repr=False)
class Inputs(Mapping[str, Tensor]):
    """A prepared batch: the tensors of a model's forward, and what each position is.

    It is a mapping over the tensors, so that ``hf_model(**inputs)`` works. `prepare` makes it, and
    shows an example.

    Attributes:
        tensors: ``input_ids`` and ``attention_mask`` of shape (batch, pos), padded on the left;
            with images also ``pixel_values``, all samples' images in order, and whatever else the
            model's forward needs to place them. Of a vision tower alone, no more than the images.
        token_map: One map per sample; of a vision tower alone, of the tower's own positions.
        images: The original images of each sample, in RGB.
        texts: The prompt of each sample as it went into the tokenizer, each image as one
            placeholder.
        batched: False if a single prompt came in rather than a list of them.
        tokenizer: Turns the token ids of an answer into text; None of a vision tower alone.
        image_token_id: The id at image (or audio) positions; None where a mask marks them.
        answer_type: What ``token_type_ids`` are at an answer.
    """

    tensors: dict[str, Tensor]
    token_map: list[TokenMap]
    images: list[list[Image.Image]]
    texts: list[str]
    batched: bool
    tokenizer: PreTrainedTokenizerBase | None
    image_token_id: int | None
    answer_type: int = 0

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __repr__(self) -> str:
        batch, length = self.shape
        images = sum(len(images) for images in self.images)
        tensors = ", ".join(f"{name} {list(value.shape)}" for name, value in self.items())
        return (
            f"Inputs({counted(batch, 'sample')} of {length} positions, "
            f"{counted(images, 'image')}: {tensors}, on {self.device})"
        )

    @property
    def input_ids(self) -> Int[Tensor, "batch pos"]:
        """Token ids, the image token's id at every image position."""
        return self.tensors["input_ids"]

    @property
    def attention_mask(self) -> Int[Tensor, "batch pos"]:
        """1 at real positions, 0 at padding."""
        return self.tensors["attention_mask"]

    @property
    def pixel_values(self) -> Float[Tensor, "..."] | None:
        """All samples' processed images in order; None where no sample has any.

        Their shape is the family's: (images, channels, height, width) in most, with an axis of
        tiles in some, and (patches, channels * pixels) in Qwen-VL.
        """
        return self.tensors.get("pixel_values")

    @property
    def shape(self) -> torch.Size:
        """(batch, pos): the shape of ``input_ids``, or how many positions the maps have."""
        if "input_ids" in self.tensors:
            return self.input_ids.shape
        return torch.Size((len(self.token_map), len(self.token_map[0])))

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return next(iter(self.tensors.values())).device

    def to(self, target: str | int | torch.device | torch.dtype) -> "Inputs":
        """Returns these inputs on a device, or with their float tensors in a dtype."""
        if isinstance(target, torch.dtype):
            moved = {
                name: value.to(target) if value.is_floating_point() else value
                for name, value in self.items()
            }
        else:
            moved = {name: value.to(target) for name, value in self.items()}
        return replace(self, tensors=moved)

    def with_positions(self) -> "Inputs":
        """Returns these inputs with the number of each position in its text, for a model that
        would count padding.
        """
        numbers = {"position_ids": positions_in_text(self.attention_mask)}
        return replace(self, tensors={**self.tensors, **numbers})

    def positions_mask(self, kind: Kind) -> Bool[Tensor, "batch pos"]:
        """Returns the mask of one kind of positions, on the device of ``input_ids``.

        Args:
            kind: A modality or a role; see `TokenMap.positions`.
        """
        masks = torch.stack([token_map.mask(kind) for token_map in self.token_map])
        return masks.to(self.device)

    def view_rows(self, *, sample: int = 0, image: int = 0) -> slice:
        """Returns where an image's views lie among those that the encoder sees of the batch.

        Hooks of the encoder show ``[views, patches, d]`` of all samples; these rows of it belong
        to one image, and are what `TokenMap.patch_heatmap` takes.

        Args:
            sample: Which of the batch's samples.
            image: Which of the sample's images.

        Raises:
            IndexError: There is no such sample or image.
        """
        layouts = self.token_map[sample].layouts
        shown = layouts[image]
        owners = PositionOwners.of_run(self, self.token_map).pictures
        assert owners is not None  # there are token maps
        its_rows = (owners == range(len(self.token_map))[sample]).nonzero()[:, 0].tolist()
        start = its_rows[sum(len(layout.views) for layout in layouts[:image])]
        return slice(start, start + len(shown.views))

    def extend(self, tokens: Int[Tensor, "batch pos_total"]) -> "Inputs":
        """Returns the inputs that replay a generation in one forward pass.

        Args:
            tokens: The whole sequences as ``generate`` returns them: these ``input_ids`` and the
                answers behind them. What a batch's shorter answers are filled up with counts as
                part of the answer; being last, it changes nothing at the positions before it.

        Returns:
            The same images with the longer sequences; the new positions have the role "answer".

        Raises:
            ValueError: The tokens do not start with ``input_ids``, or an answer holds an image
                token.
            KeyError: These are the inputs of a tower alone, which have no tokens.
        """
        batch, length = self.shape
        tokens = tokens.to(self.input_ids.device)
        starts_same = tokens.ndim == 2 and tokens.shape[0] == batch and tokens.shape[1] >= length
        if not starts_same or not torch.equal(tokens[:, :length], self.input_ids):
            raise ValueError(
                f"expected token ids of shape ({batch}, {length} or more) that start with these "
                f"inputs' input_ids, got shape {tuple(tokens.shape)}: pass the prompt and the "
                "answer together"
            )
        answers = tokens[:, length:]
        if self.image_token_id is not None and (answers == self.image_token_id).any():
            raise ValueError(
                f"an answer holds the image token (id {self.image_token_id}), for which there is "
                "no image: keep the model from generating it"
            )
        tokenizer: Any = self.tokenizer  # a tower alone has no input_ids, and fails above
        maps = [
            token_map.extend(token_strings(tokenizer, answer.tolist()))
            for token_map, answer in zip(self.token_map, answers, strict=True)
        ]
        longer = {
            name: lengthen(name, value, answers.shape[1], answer_type=self.answer_type)
            for name, value in self.items()
            if name in PER_POSITION
        }
        tensors = {**self.tensors, **longer, "input_ids": tokens}
        return replace(self, tensors=tensors, token_map=maps)


def token_strings(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """Decodes token ids one by one, as TransformerLens shows tokens."""
    texts = {i: tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in set(ids)}
    return [str(texts[i]) for i in ids]
