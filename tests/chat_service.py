"""A service that speaks /v1/chat/completions, in a thread: it answers, or fails as it is told to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, object, dict[str, str]]
"""Status, body (text, or what JSON is made of) and headers."""


class Service:
    """What was asked, and what is answered. reply(number, body): of the number-th request, None for an answer."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.at_once = self.most_at_once = 0
        self.delay = 0.0
        self.reply: Callable[[int, dict[str, Any]], Reply | None] = lambda number, body: None
        self.url = ""
        self._lock = threading.Lock()

    @property
    def prompts(self) -> list[str]:
        return [body["messages"][-1]["content"] for body in self.asked]

    def take(self, path: str, key: str | None, body: dict[str, Any]) -> Reply:
        with self._lock:
            number = len(self.asked)
            self.asked.append(body)
            self.keys.append(key)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        time.sleep(self.delay)
        with self._lock:
            self.at_once -= 1
        if path != "/v1/chat/completions":
            return 404, {"error": {"message": "no such path"}}, {}
        return self.reply(number, body) or (200, answer(f"I say {body['messages'][-1]['content']}"), {})


def answer(text: str | None) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}


@contextmanager
def running() -> Iterator[Service]:
    """Serve on a free port of this machine."""
    service = Service()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, value, headers = service.take(self.path, self.headers.get("Authorization"), body)
            raw = value.encode() if isinstance(value, str) else json.dumps(value).encode()
            self.send_response(status)
            for name, text in headers.items():
                self.send_header(name, text)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    service.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
