"""A server on this machine that speaks the chat protocol, and fails as it is told to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """What the server sends to one request.

    Attributes:
        content: The text of the answer; None for none.
        status: The HTTP status.
        headers: More headers.
        body: All that is sent, in place of an answer.
        seconds: How long it takes before it replies.
        message: What else is in the answer's message.
        finish: Why the answer ended.
    """

    content: str | None = "red things"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    seconds: float = 0.0
    message: dict[str, Any] = field(default_factory=dict)
    finish: str = "stop"

    def to_bytes(self) -> bytes:
        if self.body is not None:
            return self.body
        message = {"role": "assistant", "content": self.content, **self.message}
        choice = {"index": 0, "message": message, "finish_reason": self.finish}
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "tiny"}
        return json.dumps({**answer, "choices": [choice], "usage": usage}).encode()


NO_CHOICE = json.dumps(
    {"id": "1", "object": "chat.completion", "created": 0, "model": "tiny", "choices": []}
).encode()


@dataclass
class Server:
    """What was asked, and what is going to be replied.

    Attributes:
        replies: In order; when they are used up, `otherwise` replies.
        otherwise: From a request's content to a reply.
        requests: The requests so far.
        headers: Their headers.
        times: When they came.
    """

    replies: list[Reply] = field(default_factory=list)
    otherwise: Callable[[dict], Reply] = lambda _: Reply()
    requests: list[dict] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    url: str = ""


@contextmanager
def chat_server(*replies: Reply) -> Iterator[Server]:
    """A server for the length of a block."""
    server = Server(list(replies))
    stopped = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            server.times.append(time.monotonic())
            server.headers.append({name.lower(): value for name, value in self.headers.items()})
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.requests.append({"path": self.path, **content})
            reply = server.replies.pop(0) if server.replies else server.otherwise(content)
            stopped.wait(reply.seconds)
            body = reply.to_bytes()
            headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
            try:
                self.send_response(reply.status)
                for name, value in {**headers, **reply.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
            except OSError:
                pass  # whoever asked has given up

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_port}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        stopped.set()
        http.shutdown()
        http.server_close()
        thread.join()
