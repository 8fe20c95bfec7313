"""A chat endpoint: what is sent, to whom, how often, and what happens when it fails."""

from __future__ import annotations

import base64
import io
import json
import logging
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

import vlm_lens
from tests.analyses.chat_server import NO_CHOICE, Reply, Server, chat_server
from tests.tiny import picture
from vlm_lens.analyses.chat import Chat, ChatError, ReplyError
from vlm_lens.analyses.explaining.prompt import Cost, Prompt, image_tokens

KEY = "sk-very-secret-0123456789"
PROMPT = Prompt("Explain.", ("a cat", picture(0, size=(20, 12)), "a dog"))
SOON = {"retry-after-ms": "10"}


@pytest.fixture
def server() -> Iterator[Server]:
    with chat_server() as found:
        yield found


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def chat(server: Server, **options: Any) -> Chat:
    return Chat(server.url, "tiny", **{"max_retries": 2, "timeout": 5.0, **options})


# What is sent -------------------------------------------------------------------------------------


def test_text_and_images_go_out_in_order_as_the_protocol_has_them(server: Server):
    assert chat(server).ask(PROMPT, str) == "red things"
    [request] = server.requests
    assert request["path"] == "/v1/chat/completions"
    assert request["model"] == "tiny"
    assert (request["max_tokens"], request["temperature"]) == (300, 0.0)
    system, user = request["messages"]
    assert system == {"role": "system", "content": "Explain."}
    first, image, last = user["content"]
    assert (first["text"], last["text"]) == ("a cat", "a dog")
    kind, data = image["image_url"]["url"].split(",")
    assert kind == "data:image/png;base64"
    sent = Image.open(io.BytesIO(base64.b64decode(data)))
    assert sent.tobytes() == PROMPT.images[0].tobytes()


def test_the_key_comes_from_the_environment_or_is_given(
    server: Server, monkeypatch: pytest.MonkeyPatch
):
    chat(server).ask(PROMPT, str)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    chat(server).ask(PROMPT, str)
    monkeypatch.setenv("MY_KEY", "mine")
    chat(server, key_variable="MY_KEY").ask(PROMPT, str)
    chat(server, key="given").ask(PROMPT, str)
    keys = [headers["authorization"] for headers in server.headers]
    assert keys == ["Bearer none", f"Bearer {KEY}", "Bearer mine", "Bearer given"]


def test_what_the_environment_says_of_another_endpoint_is_not_sent(
    server: Server, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-1")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    chat(server).ask(PROMPT, str)
    assert not {"openai-organization", "openai-project"} & set(server.headers[0])


def test_nothing_is_sent_before_something_is_asked(server: Server):
    one = chat(server, input_price=1.0, output_price=1.0)
    one.cost([PROMPT])
    repr(one)
    assert server.requests == []


def test_there_is_no_default_endpoint(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    with pytest.raises(TypeError, match="base_url"):
        Chat(model="tiny")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8000", "ftp://host/v1", "http://", "file:///etc/passwd"]
    + ["http://host\n/v1", "http://a host/v1", "\thttp://host/v1", "http://host:99999/v1"]
    + ["http://[::1"],
)
def test_what_is_no_address_is_refused(url: str):
    with pytest.raises(ValueError, match="such as 'http://localhost:8000/v1'"):
        Chat(url, "tiny")


@pytest.mark.parametrize("url", ["http://me:pass@host/v1", "http://host/v1?key=abc", "http://h/#k"])
def test_addresses_with_secrets_are_refused_and_not_repeated(url: str):
    with pytest.raises(ValueError, match="without user, password and query") as error:
        Chat(url, "tiny")
    assert "pass@" not in str(error.value)
    assert "abc" not in str(error.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"timeout": 0},
        {"timeout": float("nan")},
        {"timeout": float("inf")},
        {"requests_per_minute": 0},
        {"requests_per_minute": float("nan")},
        {"max_retries": -1},
        {"attempts": 0},
        {"max_tokens": 0},
    ],
)
def test_numbers_out_of_range_are_refused(wrong: dict):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Chat("http://localhost:1/v1", "tiny", **wrong)


@pytest.mark.parametrize("price", [-1.0, float("nan"), float("inf")])
def test_prices_are_amounts(price: float):
    with pytest.raises(ValueError, match="expected prices of at least 0"):
        Chat("http://localhost:1/v1", "tiny", input_price=1.0, output_price=price)


def test_a_redirection_is_not_followed(server: Server):
    with chat_server() as elsewhere:
        to = {"Location": f"{elsewhere.url}/chat/completions"}
        server.replies = [Reply(status=307, headers=to, body=b"{}")]
        with pytest.raises(ChatError, match="redirects, which is not followed"):
            chat(server).ask(PROMPT, str)
        assert elsewhere.requests == []


# Failures -----------------------------------------------------------------------------------------


def test_too_many_requests_wait_as_long_as_the_server_says(server: Server):
    server.replies = [Reply(status=429, headers={"Retry-After": "1"}, body=b"{}")]
    assert chat(server).ask(PROMPT, str) == "red things"
    assert server.times[1] - server.times[0] >= 1.0


def test_an_error_of_the_server_is_tried_again(server: Server):
    server.replies = [Reply(status=500, headers=SOON, body=b"oops"), Reply(content="after all")]
    assert chat(server).ask(PROMPT, str) == "after all"
    assert len(server.requests) == 2


def test_errors_that_do_not_end_are_an_error_of_the_endpoint(server: Server):
    server.otherwise = lambda _: Reply(status=429, headers=SOON, body=b"{}")
    with pytest.raises(ChatError, match="status 429: too many requests"):
        chat(server).ask(PROMPT, str)
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "the key is missing or wrong"), (404, "base_url usually ends with '/v1'"), (400, "400")],
)
def test_what_trying_again_cannot_help_is_said_at_once(server: Server, status: int, message: str):
    server.otherwise = lambda _: Reply(status=status, body=b'{"error": {"message": "no"}}')
    with pytest.raises(ChatError, match=message):
        chat(server).ask(PROMPT, str)
    assert len(server.requests) == 1


def test_a_server_that_hangs_is_given_up(server: Server):
    server.otherwise = lambda _: Reply(seconds=30.0)
    with pytest.raises(ChatError, match=r"did not reply within 0\.2 seconds, asked 2 times"):
        chat(server, timeout=0.2, max_retries=1).ask(PROMPT, str)


def test_a_server_that_is_not_there_is_an_error_that_says_so():
    with chat_server() as gone:
        pass
    with pytest.raises(ChatError, match="cannot be reached"):
        chat(gone, max_retries=0).ask(PROMPT, str)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply(body=NO_CHOICE), "no choice"),
        (Reply(content=None), "empty"),
        (Reply(content=" \n"), "empty"),
        (Reply(content=None, message={"refusal": "I cannot."}), "refuses: I cannot"),
        (Reply(content="no", finish="content_filter"), "filter"),
        (Reply(content="red thi", finish="length"), "cut short: raise max_tokens"),
    ],
)
def test_useless_replies_are_asked_for_again_and_then_said(
    server: Server, reply: Reply, message: str
):
    server.replies = [reply]
    assert chat(server).ask(PROMPT, str) == "red things"
    server.otherwise = lambda _: reply
    with pytest.raises(ReplyError, match=rf"{message}.*\(asked 2 times\)"):
        chat(server).ask(PROMPT, str)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply(body=b'{"choices": [tr'), "not JSON"),
        (Reply(body=b""), "not JSON"),
        (Reply(body=b'{"choices": "\xff"}'), "not JSON"),
        (Reply(body=b"[" * 100_000), "not JSON"),
        (Reply(body=b"{}"), "no chat completion"),
        (Reply(body=b"null"), "no chat completion"),
        (Reply(body=b"[]"), "no chat completion"),
        (Reply(body=b"[1, 2]"), "no chat completion"),
        (Reply(body=b'{"choices": 3}'), "not what a chat completion is"),
        (Reply(body=b'{"choices": [3]}'), "not what a chat completion is"),
        (Reply(body=b"<html>", headers={"Content-Type": "text/html"}), "choices: '<html>'"),
    ],
)
def test_what_is_no_chat_completion_is_asked_for_again_and_then_the_endpoint_s_failure(
    server: Server, tmp_path: Path, reply: Reply, message: str
):
    server.replies = [reply]
    assert chat(server).ask(PROMPT, str) == "red things"
    server.otherwise = lambda _: reply
    with pytest.raises(ChatError, match=rf"{message}.*\(asked 2 times\)\. Is it down"):
        chat(server, cache=tmp_path).ask(PROMPT, str)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["two words", "line\n", "schl\u00fcssel", "\u2028"])
def test_a_key_that_no_request_can_hold_is_refused_and_not_repeated(server: Server, key: str):
    with pytest.raises(ChatError, match="copy it once more") as error:
        chat(server, key=key).ask(PROMPT, str)
    assert key not in str(error.value)
    assert server.requests == []


def test_the_key_is_in_no_error(server: Server):
    said = json.dumps({"error": {"message": f"wrong key {KEY}"}}).encode()
    server.otherwise = lambda _: Reply(status=401, body=said)
    with pytest.raises(ChatError) as error:
        chat(server, key=KEY).ask(PROMPT, str)
    assert KEY not in str(error.value)
    assert error.value.__cause__ is None
    assert KEY not in repr(chat(server, key=KEY))
    assert KEY not in str(chat(server, key=KEY).parameters)


def test_the_key_is_in_no_log(server: Server, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.DEBUG):
        chat(server, key=KEY).ask(PROMPT, str)
    assert caplog.text
    assert KEY not in caplog.text


# The cache ----------------------------------------------------------------------------------------


def test_nothing_is_asked_twice(server: Server, tmp_path: Path):
    for _ in range(2):
        assert chat(server, cache=tmp_path / "replies").ask(PROMPT, str) == "red things"
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"prompt": Prompt("Explain.", ("another cat",))},
        {"prompt": Prompt("Explain.", ("a cat", picture(1, size=(20, 12)), "a dog"))},
        {"prompt": Prompt("Say it.", PROMPT.parts)},
        {"options": {"max_tokens": 99}},
        {"options": {"temperature": 1.0}},
        {"options": {"detail": "low"}},
    ],
)
def test_another_request_is_another_entry(server: Server, tmp_path: Path, other: dict):
    chat(server, cache=tmp_path).ask(PROMPT, str)
    changed = chat(server, cache=tmp_path, **other.get("options", {}))
    changed.ask(other.get("prompt", PROMPT), str)
    assert len(server.requests) == 2
    assert len(list(tmp_path.glob("*.json"))) == 2


def test_another_model_is_another_entry(server: Server, tmp_path: Path):
    chat(server, cache=tmp_path).ask(PROMPT, str)
    Chat(server.url, "large", cache=tmp_path).ask(PROMPT, str)
    assert len(server.requests) == 2


def test_another_key_is_the_same_entry_and_no_file_holds_one(server: Server, tmp_path: Path):
    server.otherwise = lambda _: Reply(content=f"your key is {KEY}")
    reply = chat(server, cache=tmp_path, key=KEY).ask(PROMPT, str)
    assert chat(server, cache=tmp_path, key="another").ask(PROMPT, str) == reply
    assert len(server.requests) == 1
    [path] = tmp_path.iterdir()
    text = path.read_text()
    assert KEY not in text + path.name
    assert "a cat" not in text
    assert "base64" not in text
    kept = json.loads(text)
    assert kept["usage"] == {"prompt_tokens": 7, "completion_tokens": 3}
    assert kept["model"] == "tiny"


def test_useless_replies_are_not_kept(server: Server, tmp_path: Path):
    server.replies = [Reply(content="nonsense"), Reply(content="nonsense")]

    def read(reply: str) -> str:
        if reply == "nonsense":
            raise ReplyError("cannot read it")
        return reply

    with pytest.raises(ReplyError, match="cannot read it"):
        chat(server, cache=tmp_path).ask(PROMPT, read)
    assert list(tmp_path.iterdir()) == []
    assert chat(server, cache=tmp_path).ask(PROMPT, read) == "red things"


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"reply": 3}', b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_entry_is_asked_for_again(server: Server, tmp_path: Path, damage: bytes):
    chat(server, cache=tmp_path).ask(PROMPT, str)
    [path] = tmp_path.iterdir()
    path.write_bytes(damage)
    assert chat(server, cache=tmp_path).ask(PROMPT, str) == "red things"
    assert len(server.requests) == 2


def test_replies_to_some_of_the_questions_are_kept_when_the_endpoint_fails(
    server: Server, tmp_path: Path
):
    prompts = [Prompt("Explain.", (str(i),)) for i in range(3)]
    server.replies = [Reply(), Reply(), Reply(status=401, body=b"{}")]
    for prompt in prompts[:2]:
        chat(server, cache=tmp_path).ask(prompt, str)
    with pytest.raises(ChatError):
        chat(server, cache=tmp_path).ask(prompts[2], str)
    assert [chat(server, cache=tmp_path).cost([p]).requests for p in prompts] == [0, 0, 1]


# Cost and pace ------------------------------------------------------------------------------------


def test_the_cost_follows_the_stated_rule(server: Server, tmp_path: Path):
    one = chat(server, input_price=2.5, output_price=10.0, cache=tmp_path, max_tokens=100)
    found = one.cost([PROMPT, Prompt("Explain.", ("x" * 100,))])
    text = -(-len("Explain.\na cat\na dog") // 4) + -(-len("Explain.\n" + "x" * 100) // 4)
    assert found.requests == 2
    assert found.images == 1
    assert found.input_tokens == text + 255  # one tile
    assert found.output_tokens == 200
    assert found.price == pytest.approx((found.input_tokens * 2.5 + 200 * 10.0) / 1e6)
    one.ask(PROMPT, str)
    assert one.cost([PROMPT]) == Cost()


def test_without_prices_there_is_no_price(server: Server):
    found = chat(server, input_price=2.5).cost([PROMPT])
    assert found.price is None
    assert "price not known" in str(found)
    assert (found + Cost()).price is None


@pytest.mark.parametrize(
    ("size", "tokens"),
    # 2048 x 4096 -> 1024 x 2048 -> 768 x 1536: 2 x 3 tiles.
    [((512, 512), 255), ((1024, 1024), 765), ((2048, 4096), 1105), ((513, 100), 425)],
)
def test_tokens_of_images_are_counted_in_tiles(size: tuple[int, int], tokens: int):
    assert image_tokens(size) == tokens


def test_requests_keep_their_pace(server: Server, monkeypatch: pytest.MonkeyPatch):
    now, sent = 1000.0, []

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    clock = SimpleNamespace(monotonic=lambda: now, sleep=sleep)
    monkeypatch.setattr("vlm_lens.analyses.chat.time", clock)
    slow = chat(server, requests_per_minute=300)  # one in 0.2 seconds
    for took in (0.0, 0.15, 0.3):
        slow.ask(Prompt("Explain.", (str(took),)), str)
        sent.append(now - 1000.0)
        now += took
    assert sent == pytest.approx([0.0, 0.2, 0.4])


# Without the client -------------------------------------------------------------------------------


def test_without_the_client_there_is_advice(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match=r"pip install 'vlm-lens\[chat\]'"):
        Chat("http://localhost:8000/v1", "tiny")


def test_nothing_but_the_chat_needs_the_client_and_that_only_when_used(
    monkeypatch: pytest.MonkeyPatch,
):
    package = Path(vlm_lens.__file__).parent
    users = [path.name for path in package.rglob("*.py") if "import openai" in path.read_text()]
    assert users == ["chat.py"]
    monkeypatch.setitem(sys.modules, "openai", None)
    runpy.run_path(str(package / "analyses" / "chat.py"))
