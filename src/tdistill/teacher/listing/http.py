"""HTTP with patience: what fails for a moment is asked again, what fails for good says so."""

from __future__ import annotations

import os
import time
import weakref
from typing import Any

from tdistill.errors import ServerError, excerpt, one_line
from tdistill.plain_json import BadJSON, parse_json
from tdistill.teacher.config import ServerConfig

_CONNECT_SECONDS = 10.0
_LONGEST_WAIT = 60.0
_BUSY = (408, 425, 429)


class _Passing(Exception):
    """A fault that may be gone at the next try."""

    def __init__(self, text: str, wait: float | None = None) -> None:
        super().__init__(text)
        self.wait = wait  # seconds that the server asks for


class HttpClient:
    """Asks one server; may be used by several threads.

    The API key is read from the environment, sent, and never shown.

    Args:
        config: where the server is, and how long to wait for it.
    """

    def __init__(self, config: ServerConfig) -> None:
        import httpx2

        key = os.environ.get(config.key_variable)
        self.config = config
        self._client = httpx2.Client(
            base_url=config.url.rstrip("/"),
            headers={} if not key else {"Authorization": f"Bearer {key}"},
            timeout=httpx2.Timeout(config.timeout, connect=_CONNECT_SECONDS),
            limits=httpx2.Limits(max_connections=config.concurrency),
        )
        weakref.finalize(self, self._client.close)  # connections that a server keeps open

    def ask(self, path: str, content: dict[str, Any] | None = None) -> Any:
        """What a path answers: to a question where there is one.

        Raises:
            ServerError: there is no such server, or it refuses, or every try failed.
        """
        for number in range(self.config.retries + 1):
            try:
                return self._once(path, content)
            except _Passing as fault:
                if number == self.config.retries:
                    raise ServerError(self._gave_up(path, fault)) from fault
                wait = fault.wait or self.config.first_wait * 2.0**number
                time.sleep(min(wait, _LONGEST_WAIT))
        raise AssertionError("there is at least one try")

    def _once(self, path: str, content: dict[str, Any] | None) -> Any:
        import httpx2

        method = "GET" if content is None else "POST"
        try:
            answer = self._client.request(method, path, json=content)
        except httpx2.TimeoutException as error:
            raise _Passing(f"no answer in {self.config.timeout:g} s") from error
        except httpx2.TransportError as error:
            raise _Passing(one_line(error)) from error
        if answer.status_code >= 500 or answer.status_code in _BUSY:
            wait = answer.headers.get("retry-after", "")
            seconds = float(wait) if wait.isdigit() else None
            raise _Passing(f"status {answer.status_code}: {_words(answer.text)}", seconds)
        if answer.status_code != 200:
            raise ServerError(self._refusal(path, answer.status_code, answer.text))
        try:
            return parse_json(answer.text)
        except BadJSON as error:
            raise _Passing(f"JSON with {error}") from error
        except ValueError as error:
            raise _Passing(f"no JSON: {excerpt(answer.text)}") from error

    def _gave_up(self, path: str, fault: _Passing) -> str:
        return (
            f"{self.config.url}{path}: expected an answer, found {fault} at each of "
            f"{self.config.retries + 1} tries; what is finished stays: look after the server (or "
            "raise teacher.server.timeout and retries), and the same command goes on"
        )

    def _refusal(self, path: str, status: int, text: str) -> str:
        cures = {
            401: f"put its API key into the environment as {self.config.key_variable}",
            403: f"put its API key into the environment as {self.config.key_variable}",
            404: "name a vLLM-compatible server, without a path, and a model that it has",
        }
        cure = "start it with --max-logprobs -1 --logprobs-mode raw_logprobs, or ask for less"
        return (
            f"{self.config.url}{path}: expected an answer, found status {status}: {_words(text)}; "
            f"{cures.get(status, cure)}"
        )


def _words(text: str) -> str:
    """What the server says of an error, in its JSON or as it stands."""
    try:
        found = parse_json(text)
        error = found.get("error", found)
        return excerpt(error.get("message", error) if isinstance(error, dict) else error, 300)
    except (ValueError, AttributeError):
        return excerpt(text, 300)
