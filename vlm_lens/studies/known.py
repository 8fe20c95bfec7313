"""Which studies there are: those of this package, and those that others bring."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from importlib.metadata import entry_points

from vlm_lens.studies.options import Study, read_study
from vlm_lens.studies.source import SourceError

GROUP = "vlm_lens.studies"
"""The group of entry points by which studies of other packages are found."""

OWN = {
    "miner": "vlm_lens.analyses.miner_study:study_modalities",
    "types": "vlm_lens.analyses.neuron_types:types",
    "culture": "vlm_lens.analyses.culture:culture",
}
"""The studies of this package."""


class BrokenStudyError(Exception):
    """A study of another package that cannot be read; the message says which, and why."""


def studies(*, taken: Collection[str] = ()) -> Iterator[Study | BrokenStudyError]:
    """All studies, ours first; in place of one that cannot be read, why not.

    Args:
        taken: Names that no study of another package may have, as other commands do.
    """
    for place in OWN.values():
        yield read_study(*place.split(":"))
    names = {*OWN, *taken}
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        try:
            found = _read(point.name, point.value)
            if found.name in names:
                raise SourceError("there is a command of that name already")
        except SourceError as error:
            yield BrokenStudyError(f"the study {point.name!r} of {point.value!r}: {error}")
            continue
        names.add(found.name)
        yield found


def _read(name: str, value: str) -> Study:
    module, colon, function = value.partition(":")
    if not colon or not module or not function:
        raise SourceError("expected a place such as 'my_package.my_module:my_function'")
    found = read_study(module, function)
    if found.name != name:
        raise SourceError(f"it declares itself as {found.name!r}")
    return found
