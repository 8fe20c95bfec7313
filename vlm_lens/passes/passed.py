"""What a pass gives, and how the results of several passes become one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from vlm_lens.counted import counted
from vlm_lens.passes.data import ONE
from vlm_lens.passes.reducers import Reducer, State
from vlm_lens.results.scores import Scores

Key = tuple[str, str, str]
"""Group, reducer and hook point."""


@dataclass(frozen=True, eq=False)
class Passed:
    """What a pass gives; each batch gives a new one, so none is half done.

    Attributes:
        states: By group, reducer and hook point; those that nothing reached are missing.
        n_samples: How many samples of each group count.
        left_out: The samples that do not, by data set and number, and why.
        not_finite: By hook point, in how many samples what was measured is infinite or NaN.
        n_batches: How many batches are done.
        digest: A checksum of their samples, where something is kept.
    """

    states: dict[Key, State] = field(default_factory=dict)
    n_samples: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, dict[int, str]] = field(default_factory=dict)
    not_finite: dict[str, int] = field(default_factory=dict)
    n_batches: int = 0
    digest: str = ""

    def of(self, reducer: str, group: str) -> dict[str, State]:
        """The states of a reducer and a group, by hook point."""
        return {
            site: state
            for (of_group, of_reducer, site), state in self.states.items()
            if (of_group, of_reducer) == (group, reducer)
        }

    @property
    def n_left_out(self) -> int:
        """How many samples do not count."""
        return sum(map(len, self.left_out.values()))

    @property
    def first_left_out(self) -> str:
        """A sample that does not count, and why."""
        (dataset, numbers), *_ = self.left_out.items()
        number, reason = next(iter(numbers.items()))
        of_dataset = "" if dataset == ONE else f" of {dataset!r}"
        return f"sample {number}{of_dataset}: {reason}"

    def plus(self, other: Passed, reducers: Mapping[str, Reducer]) -> Passed:
        """This, and what another pass over other samples gave."""
        states = dict(self.states)
        for key, state in other.states.items():
            if key in states:
                # What was read from a file is on the CPU.
                like = {name: state.get(name, t) for name, t in states[key].items()}
                before = {name: t.to(like[name].device) for name, t in states[key].items()}
                states[key] = reducers[key[1]].plus(before, state)
            else:
                states[key] = state
        left_out = {
            name: {**self.left_out.get(name, {}), **other.left_out.get(name, {})}
            for name in {**self.left_out, **other.left_out}
        }
        return Passed(
            states=states,
            n_samples=_sums(self.n_samples, other.n_samples),
            left_out=left_out,
            not_finite=_sums(self.not_finite, other.not_finite),
            n_batches=self.n_batches + other.n_batches,
        )

    def means(
        self,
        reducer: str,
        *,
        per: Literal["samples", "positions"] = "samples",
        groups: Sequence[str] | None = None,
        method: str = "mean",
    ) -> Scores:
        """The means of a `Total`, with the groups as an axis.

        Args:
            reducer: Its name.
            per: Whether sums are divided by the number of samples or of positions.
            groups: Which groups, in order; by default all, as they came.
            method: What the scores are called.

        Returns:
            Scores with the axis "group"; NaN where a group reached no position of a hook point.
            They know how many samples each group has, and note which were left out.
        """
        names = list(
            dict.fromkeys(group for group, _, _ in self.states) if groups is None else groups
        )
        states = {group: self.of(reducer, group) for group in names}
        like = {site: state["sum"] for of in states.values() for site, state in of.items()}

        def mean(group: str, site: str) -> Tensor:
            state = states[group].get(site)
            nothing = torch.full_like(like[site], torch.nan)
            return nothing if state is None else state["sum"] / state[per]

        scores = {site: torch.stack([mean(g, site) for g in names]).float() for site in like}
        return Scores(
            scores,
            method,
            {"n_samples": {name: self.n_samples.get(name, 0) for name in names}},
            {"group": tuple(names)},
            self.notes,
        )

    def on_cpu(self) -> Passed:
        """The same, with all states on the CPU."""
        states = {
            key: {name: tensor.cpu() for name, tensor in state.items()}
            for key, state in self.states.items()
        }
        return replace(self, states=states)

    @property
    def notes(self) -> tuple[str, ...]:
        """How many samples were left out, and why."""
        reasons = Counter(
            f"left out: {reason}" if dataset == ONE else f"left out of {dataset!r}: {reason}"
            for dataset, numbers in self.left_out.items()
            for reason in numbers.values()
        )
        return tuple(f"{counted(n, 'sample')} {reason}" for reason, n in reasons.items())


def merge(parts: Iterable[Passed], reducers: Mapping[str, Reducer]) -> Passed:
    """Several passes' states together, such as those of the shards of one.

    Args:
        parts: At least one.
        reducers: Those that they were made with.
    """
    whole, *others = parts
    for part in others:
        whole = whole.plus(part, reducers)
    return whole


def _sums(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in {**one, **other}}
