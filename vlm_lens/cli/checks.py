"""What the user gave, told apart from what goes wrong in the program."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vlm_lens.whole_file import DamagedError, is_full


class InputError(Exception):
    """Something that the user gave does not work; the message says what and why, in one line."""


@contextmanager
def reading_input() -> Iterator[None]:
    """Marks where input is read: an error there is the input's, and its message is for the user.

    That a disk is full is no matter of the input, whatever was read or written; and a damaged file
    of ours says itself what to do.
    """
    try:
        yield
    except (ImportError, KeyError, OSError, TypeError, ValueError) as error:
        if isinstance(error, KeyError) and not _names_a_hook(error):
            raise
        if isinstance(error, DamagedError | BrokenPipeError):
            raise
        if isinstance(error, OSError) and is_full(error):
            raise
        raise InputError(" ".join(str(error).split())) from error


@contextmanager
def refusing() -> Iterator[None]:
    """Marks where a method runs, which refuses what it is given with a ValueError of its own.

    A model may lack what it needs, too. Anything else that goes wrong in it is no matter of the
    input.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        is_other = isinstance(error, KeyError | TypeError) and not _is_of_the_model(error)
        if isinstance(error, DamagedError) or is_other:
            raise
        raise InputError(" ".join(str(error).split())) from error


def _names_a_hook(error: KeyError) -> bool:
    """Whether a hook name is wrong; any other key is the program's."""
    from vlm_lens.hooks.names import HookNameError  # by now torch is loaded anyway

    return isinstance(error, HookNameError)


def _is_of_the_model(error: KeyError | TypeError) -> bool:
    """Whether a model has no such hook, or not the parts that are needed."""
    from vlm_lens.hooks import ArchitectureError

    return isinstance(error, ArchitectureError) or (
        isinstance(error, KeyError) and _names_a_hook(error)
    )


def check_device(name: str | None) -> None:
    """Refuses a device that this installation of torch does not have.

    Raises:
        InputError: There is no such device.
    """
    import torch

    if name is None:
        return
    try:
        torch.zeros(1, device=name).cpu()
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"the device {name!r} does not work here: {reason}") from error
