"""A chat endpoint with image input: a provider's, or a server of your own (vLLM, Ollama).

Anything that speaks OpenAI's chat completions will do. There is no default endpoint: nothing is
sent anywhere until one is named.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlsplit

from vlm_lens.analyses.explaining.prompt import Cost, Prompt, image_tokens, text_tokens
from vlm_lens.json_text import parse_json
from vlm_lens.whole_file import replace_file

KEY_VARIABLE = "OPENAI_API_KEY"
NO_KEY = "none"
"""Sent in place of a key where there is none; servers of one's own ask for none."""

Answer = TypeVar("Answer")


class ChatError(RuntimeError):
    """The endpoint cannot be used: it is not reached, refuses requests, or keeps failing."""


class ReplyError(ValueError):
    """A reply is of no use: it is empty, a refusal, cut short, or not in the form asked for."""


class _ForeignError(ReplyError):
    """A reply is not what a chat endpoint sends, such as a page that says that it is down."""


class Chat:
    """An endpoint that speaks OpenAI's chat protocol, and a model there.

    Failed requests (no connection, timeouts, 408, 409, 429 and 5xx) are sent again, after the time
    that the server's Retry-After asks for, or else after a growing one. Replies that cannot be used
    are asked for again; whatever is not a chat completion (a login page, a proxy's own words) is
    the endpoint's failure, and not the model's. Redirections are not followed: what is sent goes to
    this endpoint only.

    Args:
        base_url: Where it is, e.g. "http://localhost:8000/v1". There is no default.
        model: What the endpoint calls the model.
        key: The key. By default that in the environment variable `key_variable`; without any, a
            server of one's own is asked without. It is never written anywhere.
        key_variable: See there.
        timeout: How long to wait for a reply, in seconds.
        max_retries: How often a request that failed is sent again.
        attempts: How often to ask where a reply cannot be used.
        requests_per_minute: At most so many, those that are sent again not counted; None for no
            limit.
        cache: A folder for replies, so that nothing is asked (and paid) twice: one JSON file for
            each, named by a hash of the request. It holds neither the key nor what was sent.
        max_tokens: At most so many tokens of a reply.
        temperature: 0 for the likeliest reply.
        detail: What OpenAI calls the detail of images: "auto", "low" or "high".
        input_price: What a million tokens that are sent cost; None if not known.
        output_price: What a million tokens of replies cost.
        image_tokens: How many tokens an image of (width, height) is.

    Raises:
        ImportError: The `openai` package is not installed.
        ValueError: The address is none, or holds a password; or a number is out of its range.

    Example:
        >>> chat = Chat("http://localhost:8000/v1", "qwen2.5-vl", input_price=2, output_price=10)
        >>> chat
        Chat('qwen2.5-vl' at 'http://localhost:8000/v1')
        >>> print(chat.cost([Prompt("What is this?", ("a text of some thirty letters",))]))
        requests: 1, images: 0; about 11 tokens in, at most 300 out; price at most 0.003022
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        key: str | None = None,
        key_variable: str = KEY_VARIABLE,
        timeout: int | float = 60.0,
        max_retries: int = 5,
        attempts: int = 2,
        requests_per_minute: int | float | None = None,
        cache: str | os.PathLike[str] | None = None,
        max_tokens: int = 300,
        temperature: int | float = 0.0,
        detail: str = "auto",
        input_price: int | float | None = None,
        output_price: int | float | None = None,
        image_tokens: Callable[[tuple[int, int]], int] = image_tokens,
    ) -> None:
        check_endpoint(base_url, model)
        _check_numbers(timeout, max_retries, attempts, requests_per_minute, max_tokens)
        _check_prices(input_price, output_price)
        check_installed()
        self.base_url, self.model = base_url, model
        self.options = {"max_tokens": max_tokens, "temperature": temperature, "detail": detail}
        self.prices = (input_price, output_price)
        self._key, self._key_variable = key, key_variable
        self._timeout, self._max_retries, self._attempts = timeout, max_retries, attempts
        self._pause = 0.0 if requests_per_minute is None else 60.0 / requests_per_minute
        self._last = -float("inf")
        self._cache = None if cache is None else Path(cache)
        self._image_tokens = image_tokens
        self._client: Any = None

    def __repr__(self) -> str:
        return f"Chat({self.model!r} at {self.base_url!r})"

    @property
    def parameters(self) -> dict[str, Any]:
        """What replies depend on, for results; the key is not among it."""
        return {"base_url": self.base_url, "model": self.model, **self.options}

    def ask(self, prompt: Prompt, read: Callable[[str], Answer]) -> Answer:
        """Asks once, or takes the reply from the cache.

        Args:
            prompt: What to ask.
            read: Makes something of the reply; raises ReplyError if that is not possible.

        Raises:
            ReplyError: No reply of several can be used.
            ChatError: The endpoint cannot be used.
        """
        request = self._request(prompt)
        path = self._path(request)
        if path is not None and (known := _cached(path)) is not None:
            try:
                return read(known)
            except ReplyError:
                pass  # an earlier version could read it
        errors: list[ReplyError] = []
        while len(errors) < self._attempts:
            try:
                reply, usage = self._reply(request)
                answer = read(reply)
            except ReplyError as error:
                errors.append(error)
                continue
            if path is not None:
                self._remember(path, reply, usage)
            return answer
        if all(isinstance(error, _ForeignError) for error in errors):
            raise ChatError(
                f"{self!r} does not reply as a chat endpoint does: {errors[-1]} (asked "
                f"{len(errors)} times). Is it down, or the address another one's?"
            ) from errors[-1]
        raise ReplyError(f"{errors[-1]} (asked {len(errors)} times)") from errors[-1]

    def cost(self, prompts: Sequence[Prompt]) -> Cost:
        """What asking these costs; those in the cache cost nothing."""
        total = Cost(price=None if None in self.prices else 0.0)
        for prompt in prompts:
            path = self._path(self._request(prompt)) if self._cache is not None else None
            if path is None or _cached(path) is None:
                total = total + self.estimate(prompt)
        return total

    def estimate(self, prompt: Prompt) -> Cost:
        """What asking this costs if it is not in the cache."""
        images = prompt.images
        n_input = text_tokens([prompt.text]) + sum(self._image_tokens(i.size) for i in images)
        n_output = self.options["max_tokens"]
        price = None
        if self.prices[0] is not None and self.prices[1] is not None:
            price = (n_input * self.prices[0] + n_output * self.prices[1]) / 1e6
        return Cost(
            requests=1,
            images=len(images),
            input_tokens=n_input,
            output_tokens=n_output,
            price=price,
        )

    # Asking -----------------------------------------------------------------------------------

    def _request(self, prompt: Prompt) -> dict[str, Any]:
        return {
            "model": self.model,
            "messages": prompt.messages(detail=self.options["detail"]),
            "max_tokens": self.options["max_tokens"],
            "temperature": self.options["temperature"],
        }

    def _reply(self, request: dict[str, Any]) -> tuple[str, dict[str, int]]:
        import openai

        client = self._connected()
        self._wait()
        try:
            found = client.chat.completions.create(**request)
        except (ValueError, RecursionError) as error:
            raise _ForeignError(f"what it sends is not JSON ({error})") from error
        except openai.APITimeoutError as error:
            raise ChatError(
                f"{self!r} did not reply within {self._timeout:g} seconds, asked "
                f"{self._max_retries + 1} times: is the model loaded? Raise timeout="
            ) from error
        except openai.APIConnectionError as error:
            raise ChatError(f"{self!r} cannot be reached: {error}. Does it run there?") from error
        except openai.APIStatusError as error:
            message = _status(self, error.status_code, self._without_key(str(error)))
            raise ChatError(message) from None  # which would show what the server sent
        return self._without_key(_content(found)), _usage(found)

    def _without_key(self, text: str) -> str:
        """A text without the key, should a server send it back."""
        key = self._key_used()
        return text.replace(key, "***") if key else text

    def _key_used(self) -> str | None:
        return self._key or os.environ.get(self._key_variable)

    def _connected(self) -> Any:
        """The client, made when it is first needed."""
        if self._client is None:
            import openai

            _check_key(self._key_used() or NO_KEY)
            self._client = openai.OpenAI(
                base_url=self.base_url,
                api_key=self._key_used() or NO_KEY,
                timeout=self._timeout,
                max_retries=self._max_retries,
                http_client=openai.DefaultHttpxClient(follow_redirects=False),
            )
            # They would be read from the environment, and belong to another endpoint maybe.
            self._client.organization = self._client.project = None
        return self._client

    def _wait(self) -> None:
        """Keeps requests as far apart as the rate limit wants."""
        rest = self._last + self._pause - time.monotonic()
        if rest > 0:
            time.sleep(rest)
        self._last = time.monotonic()

    # The cache --------------------------------------------------------------------------------

    def _path(self, request: dict[str, Any]) -> Path | None:
        if self._cache is None:
            return None
        said = json.dumps({"base_url": self.base_url, **request}, sort_keys=True)
        return self._cache / f"{hashlib.sha256(said.encode()).hexdigest()}.json"

    def _remember(self, path: Path, reply: str, usage: dict[str, int]) -> None:
        kept = {
            "base_url": self.base_url,
            "model": self.model,
            "reply": reply,
            "usage": usage,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, (json.dumps(kept, indent=1, ensure_ascii=False) + "\n").encode())


def check_installed() -> None:
    """Checks that there is a client.

    Raises:
        ImportError: There is none; the message says how to get it.
    """
    if importlib.util.find_spec("openai") is None:
        raise ImportError(
            "a chat endpoint needs the openai package, which speaks its protocol: "
            "pip install 'vlm-lens[chat]'"
        )


_ADDRESS = (
    "expected base_url as the address of a chat endpoint, such as 'http://localhost:8000/v1', "
    "without white space"
)


def check_endpoint(base_url: str, model: str) -> None:
    """Checks an address and a model's name.

    Raises:
        ValueError: It is no address, or holds a password or a query, which caches and results
            would show.
    """
    parts = _split(base_url)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            "expected base_url without user, password and query, which would be written into "
            "results: pass the key as key=, or in an environment variable"
        )
    has_space = re.search(r"[\s\x00-\x20\x7f]", base_url)  # which urlsplit leaves out
    if has_space or parts.scheme not in ("http", "https") or not _has_host(parts):
        raise ValueError(f"{_ADDRESS}, got {base_url!r}")
    if not model:
        raise ValueError("expected the name of a model at the endpoint, got an empty text")


def _split(base_url: str) -> SplitResult:
    try:
        return urlsplit(base_url)
    except ValueError as error:  # such as half an IPv6 address
        raise ValueError(f"{_ADDRESS}, got {base_url!r}: {error}") from error


def _has_host(parts: SplitResult) -> bool:
    """Whether there is a host, and a port that is one if there is one."""
    try:
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _check_numbers(
    timeout: int | float,
    max_retries: int,
    attempts: int,
    requests_per_minute: int | float | None,
    max_tokens: int,
) -> None:
    rate = 1 if requests_per_minute is None else requests_per_minute
    if not (0 < timeout < math.inf and 0 < rate < math.inf):
        raise ValueError(
            f"expected positive numbers, got timeout={timeout} and "
            f"requests_per_minute={requests_per_minute}"
        )
    least = {"max_retries": (max_retries, 0), "attempts": (attempts, 1)}
    least |= {"max_tokens": (max_tokens, 1)}
    for name, (value, lowest) in least.items():
        if value < lowest:
            raise ValueError(f"expected {name} of at least {lowest}, got {value}")


def _check_prices(*prices: int | float | None) -> None:
    for price in prices:
        if price is not None and not 0 <= price < math.inf:
            raise ValueError(f"expected prices of at least 0, got {price}")


def _check_key(key: str) -> None:
    if not re.fullmatch(r"[!-~]+", key):
        raise ChatError(
            "the key holds white space or letters that no request can: copy it once more, without "
            "the end of its line"
        )


def _status(chat: Chat, status: int, message: str) -> str:
    advice = {
        401: "the key is missing or wrong: pass key=, or set the environment variable",
        403: "the key may not use it",
        404: "there is no such model or path: base_url usually ends with '/v1'",
        429: "too many requests, and waiting did not help: lower requests_per_minute, or go on "
        "later (with a cache, nothing is asked twice)",
    }
    redirected = "it redirects, which is not followed: name the address that it redirects to"
    why = advice.get(status, redirected if 300 <= status < 400 else "see its message")
    return f"{chat!r} refuses requests with status {status}: {why}. {message}"


def _content(found: Any) -> str:
    """The text of a reply."""
    choices = getattr(found, "choices", None)
    if choices is None:
        shown = f": {found[:60]!r}" if isinstance(found, str) else ""
        raise _ForeignError(f"the reply is no chat completion, as it has no choices{shown}")
    if not isinstance(choices, list) or not all(hasattr(one, "message") for one in choices):
        raise _ForeignError("the reply is not what a chat completion is")
    if not choices:
        raise ReplyError("the reply has no choice, so nothing was said")
    message, reason = choices[0].message, getattr(choices[0], "finish_reason", None)
    if refusal := getattr(message, "refusal", None):
        raise ReplyError(f"the model refuses: {refusal}")
    content = getattr(message, "content", None)
    if reason == "content_filter":
        raise ReplyError("the endpoint's filter stopped the reply")
    if not isinstance(content, str) or not content.strip():
        raise ReplyError(f"the reply is empty (it ended because of {reason!r})")
    if reason == "length":
        raise ReplyError("the reply was cut short: raise max_tokens=")
    return content


def _usage(found: Any) -> dict[str, int]:
    usage = getattr(found, "usage", None)
    names = ("prompt_tokens", "completion_tokens")
    counts = {name: getattr(usage, name, None) for name in names}
    return {name: count for name, count in counts.items() if isinstance(count, int)}


def _cached(path: Path) -> str | None:
    """The reply in a file; None if there is none that can be read."""
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return None
    reply = content.get("reply") if isinstance(content, dict) else None
    return reply if isinstance(reply, str) else None
