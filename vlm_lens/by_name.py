"""What a name of a model or a data set means: a folder on this machine, or a place on the hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

_PATIENCE = 10.0
"""So many seconds the hub has for an answer."""


def is_folder(name: str | Path) -> bool:
    """Whether a name means a folder on this machine rather than something on the hub.

    A `Path`, whatever exists here, and anything that is written like a path are folders.

    Example:
        >>> is_folder("./photos"), is_folder("nobody/some-data")
        (True, False)
    """
    if isinstance(name, Path) or os.path.exists(name):
        return True
    return name.startswith(("/", "./", "../", "~")) or name in (".", "..")


def check_hub_answers(
    name: str, *, kind: Literal["model", "dataset"], token: str | bool | None = None
) -> None:
    """Asks the hub once for something, which loaders do for half a minute where there is no answer.

    Whether it has it, the loaders say, with the reason.

    Args:
        name: What is asked for; nothing here is called so.
        kind: What that is.
        token: The key, if it is not the one that is stored.

    Raises:
        FileNotFoundError: The name can be none on the hub.
        ConnectionError: There is no answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    shown = name if len(name) <= 100 else f"{name[:97]}..."
    missing = f"there is no folder {shown!r} here, and"
    try:
        HfApi(token=token).repo_info(name, repo_type=kind, timeout=_PATIENCE)
    except HFValidationError as error:
        raise FileNotFoundError(
            f"{missing} it is no name on the Hugging Face hub: such names are like 'owner/name'"
        ) from error
    except HfHubHTTPError:
        return  # it is there, and the loaders know what to make of its answer
    except Exception as error:  # those of the library that carries requests, whichever that is
        raise ConnectionError(
            f"{missing} the Hugging Face hub cannot be asked for a {kind} of that name: {error}"
        ) from error
