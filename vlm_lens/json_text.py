"""Texts that are JSON, whoever wrote them."""

from __future__ import annotations

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """What a text in JSON says.

    Args:
        text: The text, or its bytes.

    Raises:
        ValueError: It is no JSON, or none that Python reads; the message ends a sentence.

    Example:
        >>> parse_json('{"a": 1}')
        {'a': 1}
        >>> parse_json("[" * 100_000)
        Traceback (most recent call last):
        ValueError: it is nested too deeply
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON ({error})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"it is no text in UTF-8 ({error})") from error
    except ValueError as error:  # which speaks of a setting of Python's
        raise ValueError("a number in it has too many digits") from error
