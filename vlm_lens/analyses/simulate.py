"""Simulators: from an explanation and a sample to how active the neuron would be at each position.

An explanation is as good as what can be predicted from it. A simulator is any function of an
explanation and a `SampleView`, which shows everything about a sample but the activations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from vlm_lens.analyses.chat import Chat
from vlm_lens.analyses.exemplars import SampleView
from vlm_lens.analyses.explaining.asking import SIMULATE, read_prediction, simulate_prompt
from vlm_lens.analyses.explaining.concept import COVER, concepts_of
from vlm_lens.analyses.explaining.explanation import Explanation
from vlm_lens.analyses.explaining.prompt import Cost
from vlm_lens.geometry import PatchGrid, pixel_transform

Prediction = Float[np.ndarray, " n"]


@dataclass(frozen=True)
class ConceptSimulator:
    """Reads predictions off annotations; made by `by_concepts`."""

    cover: int | float = COVER

    def __call__(self, explanation: Explanation, view: SampleView) -> Prediction:
        if explanation.text and not explanation.terms:
            raise ValueError(
                "this simulator reads annotations, and needs explanations by concepts; of words "
                f"alone ({explanation.text[:60]!r}) simulate.by_clip or simulate.by_chat can "
                "predict"
            )
        known = concepts_of(view, cover=self.cover)
        elsewhere = explanation.elsewhere
        found = np.where(view.is_kind("image"), elsewhere["image"], elsewhere["text"])
        for term in sorted(explanation.terms, key=lambda term: term.level):
            found[known[term.concept]] = term.level
        return found

    @property
    def parameters(self) -> dict[str, Any]:
        return {"simulator": "concepts", **vars(self)}


def by_concepts(*, cover: int | float = COVER) -> ConceptSimulator:
    """A simulator without a model: where a concept holds, the neuron is as active as it says.

    It predicts the level of the term that holds at a position (the highest, if several do), and
    what the explanation says of the rest elsewhere.

    Args:
        cover: The share of a patch that an object must cover to be in it; as for `concepts`.

    Example:
        >>> from vlm_lens.analyses.explain import Concept, Term
        >>> from vlm_lens.data import Sample
        >>> view = SampleView(
        ...     0, Sample([], "a red cat"), ("text",) * 3, ("a", " red", " cat"), ("prompt",) * 3,
        ...     np.full(3, -1), np.full((3, 4), np.nan))
        >>> term = Term(Concept("text", (("word", "red"),)), level=8.0)
        >>> by_concepts()(Explanation("the word red", (term,)), view).tolist()
        [0.0, 8.0, 0.0]
    """
    return ConceptSimulator(cover)


# CLIP ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ClipSimulator:
    """Predicts by the likeness of patches and an explanation; made by `by_clip`."""

    model: Any
    processor: Any
    prefix: str
    _patches: WeakKeyDictionary[SampleView, Tensor] = field(default_factory=WeakKeyDictionary)
    _texts: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, explanation: Explanation, view: SampleView) -> Prediction:
        found = np.full(len(view), np.nan)
        if not explanation.text or not view.pictured:
            return found
        if view not in self._patches:
            self._patches[view] = self._of_positions(view)
        is_patch = view.is_kind("image")
        similarity = self._patches[view] @ self._of_text(explanation.text)
        found[is_patch] = similarity.double().numpy()
        return found

    @torch.no_grad()
    def _of_text(self, text: str) -> Float[Tensor, " d"]:
        if text not in self._texts:
            tokenizer = self.processor.tokenizer
            tokens = tokenizer(
                [self.prefix + text],
                return_tensors="pt",
                truncation=True,
                max_length=self.model.config.text_config.max_position_embeddings,
            ).to(self.model.device)
            pooled = self.model.text_model(**tokens).pooler_output
            self._texts[text] = F.normalize(self.model.text_projection(pooled)[0], dim=-1).cpu()
        return self._texts[text]

    @torch.no_grad()
    def _of_positions(self, view: SampleView) -> Float[Tensor, "patch d"]:
        """For each patch of the view, the mean of CLIP's patches in it, weighted by their overlap.

        Means of embeddings, then similarity: that is the mean of the similarities.
        """
        found = torch.zeros(int(view.is_kind("image").sum()), self.model.config.projection_dim)
        of_image = view.image_index[view.is_kind("image")]
        for image in view.pictured:
            picture = view.picture(image)
            if picture is None:
                raise ValueError(
                    f"image {image} of sample {view.number} is not there: give its samples"
                )
            grid, embedded = self._of_picture(picture)
            boxes = view.boxes[view.is_kind("image")][of_image == image]
            weights = torch.tensor(_overlaps(boxes, grid), dtype=embedded.dtype)
            found[torch.tensor(of_image == image)] = weights @ embedded
        return found

    def _of_picture(self, picture: Any) -> tuple[PatchGrid, Float[Tensor, "patch d"]]:
        """CLIP's patches in its space of images and texts."""
        pixels = self.processor.image_processor(images=picture, return_tensors="pt")
        vision = self.model.vision_model
        hidden = vision(pixels["pixel_values"].to(self.model.device)).last_hidden_state[:, 1:]
        projected = self.model.visual_projection(vision.post_layernorm(hidden))[0]
        transform = pixel_transform(picture.size, self.processor)
        grid = PatchGrid(transform, int(self.model.config.vision_config.patch_size))
        return grid, F.normalize(projected, dim=-1).float().cpu()

    @property
    def parameters(self) -> dict[str, Any]:
        name = str(getattr(self.model, "name_or_path", ""))
        return {"simulator": "clip", "model": name, "prefix": self.prefix}


def by_clip(model: Any, processor: Any, *, prefix: str = "a photo of ") -> ClipSimulator:
    """A simulator of patches: the cosine of each patch and the explanation in CLIP's space.

    Patches go the way that CLIP trains for its class token only: the last layer's output at the
    patch, the final layer norm, the projection. Tokens of text are not simulated (NaN), so that the
    score is that of the patches. The paper ("Deciphering", arXiv 2502.18485) simulates neurons of
    patches too, but does not publish with what; this way is ours.

    Args:
        model: A Hugging Face CLIPModel.
        processor: Its CLIPProcessor, whose images are resized and cropped.
        prefix: What goes before the explanation, since CLIP has learnt from captions.

    Raises:
        TypeError: It is no CLIP model.

    Example:
        >>> from transformers import CLIPConfig, CLIPModel
        >>> by_clip(CLIPModel(CLIPConfig()), None).parameters["simulator"]
        'clip'
    """
    parts = ("text_model", "vision_model", "text_projection", "visual_projection")
    if missing := [part for part in parts if not hasattr(model, part)]:
        raise TypeError(
            f"expected a Hugging Face CLIPModel, got {type(model).__name__}, which has no "
            f"{missing[0]}"
        )
    return ClipSimulator(model, processor, prefix)


def _overlaps(boxes: Float[np.ndarray, "n 4"], grid: PatchGrid) -> Float[np.ndarray, "n patch"]:
    """The shares of each box that the patches of a grid cover, which add up to 1.

    A box that CLIP's crop leaves out altogether takes after the nearest patch.
    """
    cells = np.array([grid.box(row, col) for row in range(grid.rows) for col in range(grid.cols)])
    low = np.maximum(boxes[:, None, :2], cells[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], cells[None, :, 2:])
    shared = np.prod(np.maximum(high - low, 0.0), axis=2)
    centres, others = ((b[:, :2] + b[:, 2:]) / 2 for b in (boxes, cells))
    nearest = np.linalg.norm(centres[:, None] - others[None], axis=2).argmin(1)
    lost = shared.sum(1) <= 0
    shared[lost, nearest[lost]] = 1.0
    return shared / shared.sum(1, keepdims=True)


# A chat endpoint ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ChatSimulator:
    """Asks a chat endpoint; made by `by_chat`."""

    chat: Chat
    grid: int
    instruction: str
    _known: WeakKeyDictionary[SampleView, dict[str, Prediction]] = field(
        default_factory=WeakKeyDictionary
    )

    def __call__(self, explanation: Explanation, view: SampleView) -> Prediction:
        if not explanation.text:
            return np.full(len(view), np.nan)
        known = self._known.setdefault(view, {})
        if explanation.text not in known:
            known[explanation.text] = self.chat.ask(
                simulate_prompt(
                    explanation.text, view, instruction=self.instruction, grid=self.grid
                ),
                lambda reply: read_prediction(reply, view, grid=self.grid),
            )
        return known[explanation.text]

    def cost(self, views: Sequence[SampleView]) -> Cost:
        """What simulating these samples costs, each with an explanation of twenty words."""
        known: dict[SampleView, Cost] = {}
        total = Cost()
        for view in views:
            if view not in known:
                prompt = simulate_prompt(
                    "x" * 120, view, instruction=self.instruction, grid=self.grid
                )
                known[view] = self.chat.estimate(prompt)
            total = total + known[view]
        return total

    @property
    def parameters(self) -> dict[str, Any]:
        return {"simulator": "chat", **self.chat.parameters, "grid": self.grid}


def by_chat(chat: Chat, *, grid: int = 8, instruction: str = SIMULATE) -> ChatSimulator:
    """A simulator that asks a chat endpoint: one request for each explanation and sample.

    Images of the samples, and the texts, are sent to that endpoint.

    Args:
        chat: The endpoint; its `max_tokens` must be enough for a number for each cell and word.
        grid: It is asked for so many rows and columns of numbers for an image; each patch has the
            number of the cell that its centre is in.
        instruction: What it is told to do. The paper's prompts are not published; this one is ours.

    Raises:
        ValueError: The grid has no cell.

    Example:
        >>> by_chat(Chat("http://localhost:8000/v1", "qwen2.5-vl", max_tokens=1000)).grid
        8
    """
    if grid < 1:
        raise ValueError(f"expected a grid of at least 1, got {grid}")
    return ChatSimulator(chat, grid, instruction)
