"""Explains neurons by annotated concepts: no network, no language model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from vlm_lens.analyses.exemplars import KINDS, SCALE, Exemplars, Kind
from vlm_lens.analyses.explaining.concept import (
    ATTRIBUTES,
    COVER,
    Concept,
    concepts_of,
    word_classes,
)
from vlm_lens.analyses.explaining.explanation import Explanation, Term
from vlm_lens.analyses.explaining.measures import auroc, intersection_over_union

LEAST_IOU = 0.04
"""A concept that fits worse is no explanation: the threshold of Network Dissection."""

SHARES = (0.005, 0.01, 0.02, 0.05, 0.1)
"""Which shares of all positions count as active, of which the best one is taken.

Network Dissection has the first one alone, of the pixels of large photographs. A small image has
so few patches that a concept covers more than that, and could not fit; the others are ours.
"""

LEAST_ACTIVATION = 2.0
"""Up to this, of 10, a neuron counts as not active: T_v of "Deciphering", for visual tokens."""

WEAK = 1 / 3
"""What activates a neuron less than this share of what activates it most is called weak."""

_PLACES: dict[Kind, str] = {"image": "patches", "text": "tokens"}


@dataclass(frozen=True, kw_only=True)
class ConceptExplainer:
    """Names the concepts whose places overlap best with those where a neuron is active.

    `concepts` makes it, and explains its attributes.

    Raises:
        ValueError: A number is out of its range.
    """

    attributes: tuple[str, ...] = ATTRIBUTES
    shares: tuple[int | float, ...] = SHARES
    least_iou: int | float = LEAST_IOU
    least_samples: int = 3
    pairs: bool = True
    max_terms: int = 2
    margin: int | float = 0.02
    cover: int | float = COVER
    least_activation: int | float = LEAST_ACTIVATION
    candidates: int = 5

    def __post_init__(self) -> None:
        if not self.shares or not all(0 < share < 1 for share in self.shares):
            raise ValueError(f"expected shares between 0 and 1, got {self.shares}")
        if not 0 <= self.least_activation < SCALE:
            raise ValueError(
                f"expected least_activation from 0 to below {SCALE:g}, got {self.least_activation}"
            )
        for name in ("least_iou", "margin", "cover"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"expected {name} from 0 to 1, got {getattr(self, name)}")
        for name in ("least_samples", "max_terms"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} of at least 1, got {getattr(self, name)}")

    def __call__(self, exemplars: Exemplars) -> Explanation:
        values = exemplars.values
        thresholds = np.quantile(values, [1 - share for share in self.shares])
        # Many positions may have the largest value, so what equals the threshold is active too.
        active = (values >= thresholds[:, None]) & (values > self.least_activation)
        table, terms, details = self._table(exemplars), [], []
        elsewhere: dict[Kind, float] = {}
        for kind in KINDS:
            here = exemplars.is_kind(kind)
            fit = _Fit(
                [concept for concept in table.concepts if concept.kind == kind],
                table.masks[[concept.kind == kind for concept in table.concepts]][:, here],
                active[:, here],
                values[here],
            )
            chosen = self._chosen(fit)
            terms += [Term(fit.concepts[i], fit.level(i)) for i in chosen]
            elsewhere[kind] = fit.elsewhere(chosen)
            details.append({"kind": kind, **self._details(fit, chosen)})
        if not terms:
            elsewhere = dict.fromkeys(KINDS, 0.0)
        return Explanation(_text(terms), tuple(terms), elsewhere, {"fit": details})

    @property
    def parameters(self) -> dict[str, Any]:
        """What explanations depend on, for results."""
        return {"explainer": "concepts", **vars(self)}

    def _table(self, exemplars: Exemplars) -> _Table:
        """The concepts that hold in enough samples, and where they do."""
        views = [one.view for one in exemplars.every]
        known = [concepts_of(view, cover=self.cover) for view in views]
        found = [one.named(self.attributes, pairs=self.pairs) for one in known]
        times = Counter(concept for concepts in found for concept in concepts)
        least = min(self.least_samples, len(views))
        kept = sorted(concept for concept, n in times.items() if n >= least)
        kept += sorted(word_classes(views, self.attributes))
        ends = np.cumsum([0, *map(len, views)])
        masks = np.zeros((len(kept), ends[-1]), dtype=bool)
        for one, start, stop in zip(known, ends[:-1], ends[1:], strict=True):
            for row, concept in enumerate(kept):
                masks[row, start:stop] = one[concept]
        return _Table(kept, masks)

    def _chosen(self, fit: _Fit) -> list[int]:
        """The best concept, and those with which it fits better still."""
        if not fit.concepts:
            return []
        price = np.array([self.margin * (len(concept.parts) - 1) for concept in fit.concepts])
        best = int((fit.best - price).argmax())
        if fit.best[best] < self.least_iou:
            return []
        chosen, covered = [best], fit.masks[best]
        active = fit.active[[int(fit.iou[best].argmax())]]
        reached = fit.best[best]
        while len(chosen) < self.max_terms:
            joint = intersection_over_union(fit.masks | covered, active)[:, 0] - price
            more = int(joint.argmax())
            if joint[more] < reached + self.margin:
                break
            chosen.append(more)
            covered, reached = covered | fit.masks[more], joint[more]
        return chosen

    def _details(self, fit: _Fit, chosen: list[int]) -> dict[str, Any]:
        fitting = [i for i in range(len(fit.concepts)) if fit.best[i] > 0]
        order = sorted(fitting, key=lambda i: -fit.best[i])
        shown = list(dict.fromkeys([*chosen, *order[: self.candidates]]))
        areas = auroc(fit.masks[shown], fit.values) if shown else np.zeros(0)
        return {
            "candidates": [
                {
                    "concept": str(fit.concepts[i]),
                    "chosen": i in chosen,
                    "iou": float(fit.best[i]),
                    "active share": self.shares[int(fit.iou[i].argmax())],
                    "auroc": float(area),
                    "positions": int(fit.masks[i].sum()),
                }
                for i, area in zip(shown, areas, strict=True)
            ]
        }


@dataclass(frozen=True, eq=False)
class _Table:
    concepts: list[Concept]
    masks: Bool[np.ndarray, "concept n"]


class _Fit:
    """How well the concepts of one kind fit, over the positions of that kind."""

    def __init__(
        self,
        concepts: list[Concept],
        masks: Bool[np.ndarray, "concept n"],
        active: Bool[np.ndarray, "threshold n"],
        values: Float[np.ndarray, " n"],
    ) -> None:
        self.concepts, self.masks, self.active, self.values = concepts, masks, active, values
        self.iou = intersection_over_union(masks, active)
        self.best = self.iou.max(1) if concepts else np.zeros(0)

    def level(self, i: int) -> float:
        """The mean activation where a concept holds."""
        return float(self.values[self.masks[i]].mean())

    def elsewhere(self, chosen: Sequence[int]) -> float:
        """The mean activation where none of these holds, 0 if there is no such place."""
        rest = self.values[~self.masks[list(chosen)].any(0)]
        return float(rest.mean()) if len(rest) else 0.0


def concepts(
    *,
    attributes: Sequence[str] = ATTRIBUTES,
    shares: Sequence[int | float] = SHARES,
    least_iou: int | float = LEAST_IOU,
    least_samples: int = 3,
    pairs: bool = True,
    max_terms: int = 2,
    margin: int | float = 0.02,
    cover: int | float = COVER,
    least_activation: int | float = LEAST_ACTIVATION,
) -> ConceptExplainer:
    """An explainer that names annotated concepts: no network, no language model.

    A neuron is active where it is among the highest activations of its exemplars. The concept whose
    patches (or tokens) overlap best with that is its explanation, for patches and for tokens, as in
    Network Dissection (Bau et al. 2017, arXiv 1704.05796); then others are added with "or", as
    long as the overlap grows (Mu and Andreas 2020, arXiv 2006.14032). AUROC is reported beside it.

    Concepts of patches are those of the annotated objects in them (one attribute, or two of the
    same object), "any object", "background" and thirds of the image; concepts of tokens are words,
    a word after another one, the words that attributes consist of ("words for color"), and the
    prompt's or the answer's tokens. The samples of the bundled world are annotated. Others need
    ``sample.annotations["objects"]``, a list with one dictionary for each object:

    - "box": x0, y0, x1, y1 in pixels of the image, ends exclusive; or "mask": boolean, height x
      width of the image; with both the mask counts;
    - "image": which of the sample's images, 0 if it is missing;
    - attributes with texts as values, e.g. "category".

    Args:
        attributes: The entries of an object that are concepts.
        shares: Which shares of all positions count as active; the one with which a concept fits
            best is taken. Network Dissection has 0.005 alone, of the pixels of photographs; the
            others, for few and large patches, are ours.
        least_iou: A concept whose intersection over union is less is none; as there.
        least_samples: A concept must be in so many of the exemplars.
        pairs: Whether two attributes of one object, or two words, are a concept too.
        max_terms: At most so many concepts of patches, and of tokens.
        margin: By so much the overlap must grow with another term, or with a pair in place of one
            attribute.
        cover: The share of a patch that an object must cover to be in it, unless half of the object
            is in that patch.
        least_activation: Positions with an activation up to this, of 10, never count as active. 2
            is what "Deciphering" (arXiv 2502.18485) has for visual tokens.

    Returns:
        A function from exemplars to an explanation. In ``details["fit"]`` are the candidates that
        fit best, each with IoU, AUROC and the share of positions that counted as active.

    Raises:
        ValueError: A number is out of its range.
        TypeError: The attributes are one text.

    Example:
        >>> concepts(attributes=["category"], shares=[0.005]).shares
        (0.005,)
    """
    if isinstance(attributes, str):
        raise TypeError(f"expected a list of attributes, got {attributes!r}: put it in a list")
    return ConceptExplainer(
        attributes=tuple(attributes),
        shares=tuple(shares),
        least_iou=least_iou,
        least_samples=least_samples,
        pairs=pairs,
        max_terms=max_terms,
        margin=margin,
        cover=cover,
        least_activation=least_activation,
    )


def _text(terms: Sequence[Term]) -> str:
    """The terms in words, patches or tokens first, wherever the neuron is more active."""
    kinds: set[Kind] = {term.concept.kind for term in terms}
    level = {kind: max(term.level for term in terms if term.concept.kind == kind) for kind in kinds}
    strongest = max(level.values(), default=0.0)
    said = []
    for kind in sorted(kinds, key=lambda kind: (-level[kind], kind)):
        names = " or ".join(str(term.concept) for term in terms if term.concept.kind == kind)
        weakly = "weakly " if level[kind] < WEAK * strongest else ""
        said.append(f"{weakly}{_PLACES[kind]}: {names}")
    return "; ".join(said)
