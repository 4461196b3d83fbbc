"""A local HTTP server that answers as vLLM 0.32 does, for a tiny teacher; it can be broken."""

from __future__ import annotations

import copy
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from tdistill.core import top_p_sets
from tdistill.models.generation import draw_from_sets
from tdistill.models.language_model import LanguageModel
from tdistill.teacher.config import ServerConfig

Answer = dict[str, Any]
Fault = Callable[["Request"], None]
"""Does to a request what a broken server would; one that returns lets it be answered."""


class Request(BaseHTTPRequestHandler):
    """One request; its answer may be spoilt before it is sent."""

    server: Server
    spoil: Callable[[Answer], Any] = staticmethod(lambda answer: answer)

    def do_GET(self) -> None:
        self.server.headers_seen.append(dict(self.headers))
        self.reply(200, {"object": "list", "data": self.server.cards})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.headers_seen.append(dict(self.headers))
        with self.server.lock:
            self.server.asked.append(body)
            self.server.inside += 1
            self.server.most_inside = max(self.server.most_inside, self.server.inside)
            fault = self.server.fault_of(body)
        try:
            self._serve(body, fault)
        finally:
            with self.server.lock:
                self.server.inside -= 1

    def _serve(self, body: dict[str, Any], fault: Fault | None) -> None:
        if fault is not None:
            fault(self)
        if not self.replied:
            self.reply(200, self.spoil(self.server.answer(body)))

    replied = False

    def reply(self, status: int, content: Any, **headers: str) -> None:
        self.replied = True
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def dropped(request: Request) -> None:
    """The connection goes in the middle of the answer."""
    request.replied = request.close_connection = True
    request.connection.shutdown(socket.SHUT_RDWR)


def failing(status: int, **headers: str) -> Fault:
    """An error of the server."""
    body = {"error": {"message": f"trouble {status}", "type": "Error", "code": status}}
    return lambda request: request.reply(status, body, **headers)


def garbage(request: Request) -> None:
    """Something else than JSON."""
    request.reply(200, b'{"choices": [{"token_ids": [1, 2')


def slow(seconds: float) -> Fault:
    """An answer that comes late."""
    return lambda request: time.sleep(seconds)


def spoilt(change: Callable[[Answer], Any]) -> Fault:
    """An answer that is changed before it is sent."""

    def fault(request: Request) -> None:
        def changed(answer: Answer) -> Any:
            other = change(answer)
            return answer if other is None else other

        request.spoil = changed

    return fault


class Server(ThreadingHTTPServer):
    """Answers for a teacher.

    Attributes:
        faults: done to the next questions, one each.
        faults_by_prompt: done to every question with a prompt.
        asked: the questions, in order.
        cards: what ``/v1/models`` says.
        most_inside: how many questions were there at a time.
    """

    daemon_threads = True

    def __init__(self, lm: LanguageModel, name: str = "tiny") -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.lm, self.lock = lm, threading.Lock()
        self.faults: list[Fault] = []
        self.faults_by_prompt: dict[tuple[int, ...], Fault] = {}
        self.asked: list[dict[str, Any]] = []
        self.headers_seen: list[dict[str, str]] = []
        self.inside = self.most_inside = 0
        self._known: dict[str, Answer] = {}
        self.cards = [{"id": name, "object": "model", "max_model_len": 128}]

    def anew(self) -> Server:
        """Itself, without faults and without memory of what was asked."""
        for kept in (self.faults, self.faults_by_prompt, self.asked, self.headers_seen):
            kept.clear()
        return self

    def fault_of(self, body: dict[str, Any]) -> Fault | None:
        """What happens to a question: to that prompt, or to the next one."""
        own = self.faults_by_prompt.get(tuple(body["prompt"]))
        return own or (self.faults.pop(0) if self.faults else None)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: Any) -> None:
        """A client that has gone is no error here."""

    def answer(self, body: dict[str, Any]) -> Answer:
        """What vLLM answers to a question at ``/v1/completions``; the same to the same question."""
        name = json.dumps(body, sort_keys=True)
        if name not in self._known:
            self._known[name] = self._answer(body)
        return copy.deepcopy(self._known[name])

    def _answer(self, body: dict[str, Any]) -> Answer:
        prompt, ends = body["prompt"], {1, *body.get("stop_token_ids", ())}
        log_probs = self._log_probs(prompt)
        choice: dict[str, Any] = {"index": 0, "prompt_token_ids": prompt, "text": ""}
        if body.get("prompt_logprobs") is not None:
            pairs = zip(prompt[1:], log_probs, strict=False)
            tops = [self._named(row, body["prompt_logprobs"], token) for token, row in pairs]
            choice["prompt_logprobs"] = [None, *tops]
        ids, steps = self._sampled(prompt, log_probs[-1], body, ends)
        choice["token_ids"] = ids
        choice["finish_reason"] = "stop" if ids[-1] in ends else "length"
        if body.get("logprobs") is not None:
            tops = [
                _top(row, body["logprobs"], token) for token, row in zip(ids, steps, strict=True)
            ]
            choice["logprobs"] = {
                "tokens": [f"token_id:{token}" for token in ids],
                "token_logprobs": [float(r[t]) for t, r in zip(ids, steps, strict=True)],
                "top_logprobs": [{f"token_id:{k}": v for k, v in top.items()} for top in tops],
            }
        return {"object": "text_completion", "model": body["model"], "choices": [choice]}

    def _log_probs(self, ids: Sequence[int]) -> torch.Tensor:
        with self.lock, torch.no_grad():
            return self.lm.model(torch.tensor([ids])).logits[0].log_softmax(-1)

    def _sampled(
        self, prompt: list[int], first: torch.Tensor, body: dict[str, Any], ends: set[int]
    ) -> tuple[list[int], list[torch.Tensor]]:
        chance = torch.Generator().manual_seed(body.get("seed", 0))
        ids: list[int] = []
        steps: list[torch.Tensor] = []
        while len(ids) < body["max_tokens"] and not (ids and ids[-1] in ends):
            row = self._log_probs([*prompt, *ids])[-1] if ids else first
            tempered = (row / (body["temperature"] or 1.0)).log_softmax(-1)
            top_p = body["top_p"] if body["temperature"] else 1e-6  # at 0 the likeliest
            sets = top_p_sets(tempered[None], top_p)
            uniform = torch.rand(1, generator=chance, dtype=torch.float64)
            ids.append(int(draw_from_sets(sets, uniform)))
            steps.append(row)
        return ids, steps

    def _named(self, row: torch.Tensor, count: int, token: int) -> dict[str, Any]:
        top = _top(row, count, token)
        texts = self.lm.tokenizer.convert_ids_to_tokens(list(top))
        return {
            str(k): {"logprob": v, "rank": i + 1, "decoded_token": text}
            for i, ((k, v), text) in enumerate(zip(top.items(), texts, strict=True))
        }


def _top(row: torch.Tensor, count: int, token: int) -> dict[int, float]:
    """The chosen token first, then the likeliest, as vLLM orders them."""
    values, ids = row.topk(min(count, len(row)))
    return {token: float(row[token])} | dict(zip(ids.tolist(), values.tolist(), strict=True))


@contextmanager
def serving(lm: LanguageModel, name: str = "tiny") -> Iterator[Server]:
    """A server while it is needed."""
    server = Server(lm, name)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def config_of(server: Server, **changes: Any) -> ServerConfig:
    """How to reach it, without long waits."""
    chosen: dict[str, Any] = {"concurrency": 4, "timeout": 5.0, "retries": 2, "first_wait": 0.01}
    return ServerConfig(server.url, **(chosen | changes))
