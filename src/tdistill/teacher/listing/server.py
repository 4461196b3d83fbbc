"""An HTTP server as the engine: many requests at a time, each answer checked and kept at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, TypeVar

from tdistill.errors import ModelError, ServerError, excerpt
from tdistill.evidence.rows import Row
from tdistill.hashing import key_of
from tdistill.teacher.config import ServerConfig
from tdistill.teacher.listing.answers import (
    WrongAnswer,
    request_for,
    request_to_read,
    response_in,
    steps_in,
    texts_in,
)
from tdistill.teacher.listing.http import HttpClient
from tdistill.teacher.listing.steps import Answer, Asked, Asking, Step

_COMPLETIONS, _MODELS = "/v1/completions", "/v1/models"
_TRIED_TOKENS = 48  # of the vocabulary, whose texts are compared
_MOST_OTHERS = 0.125  # share of them that two versions of one tokenizer may write otherwise

_Asked = TypeVar("_Asked")
_Found = TypeVar("_Found")


class ServerEngine:
    """A vLLM-compatible server.

    Args:
        config: where it is, which model is meant, how many requests at a time.
    """

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self._http = HttpClient(config)
        self._pool = ThreadPoolExecutor(config.concurrency)  # of all units together
        self._failure: BaseException | None = None

    @property
    def model(self) -> str:
        """The name of the model, as the server writes it."""
        return str(self._card["id"])

    @property
    def fingerprint(self) -> str:
        """Of its name: the weights are elsewhere."""
        return key_of("served", self.model)

    @property
    def most_tokens(self) -> int | None:
        """The longest row that it takes, in tokens, if it says so."""
        found = self._card.get("max_model_len")
        return found if isinstance(found, int) else None

    @cached_property
    def _card(self) -> dict[str, Any]:
        """The entry of the model.

        Raises:
            ModelError: the server has no such model, or several where none is named.
        """
        found = self._http.ask(_MODELS)
        listed = found.get("data") if isinstance(found, dict) else None
        listed = listed if isinstance(listed, list) else []
        cards = [c for c in listed if isinstance(c, dict) and isinstance(c.get("id"), str)]
        wanted = self.config.model
        fitting = [card for card in cards if wanted in (None, card["id"])]
        if len(fitting) != 1:
            names = ", ".join(excerpt(card["id"]) for card in cards) or "none"
            expected = "one model" if wanted is None else f"the model {wanted}"
            raise ModelError(
                f"{self.config.url}: expected a server with {expected}, found {names}; set "
                "teacher.server.model to the name of one that it has"
            )
        return fitting[0]

    def check(self, tokenizer: Any, how: Asking) -> str:
        """Try the server before work is spent: its model, its lists, its tokenizer.

        Args:
            tokenizer: that of teacher.path.
            how: how it is going to be asked.

        Returns:
            What was found, for people.

        Raises:
            ModelError: it cannot be used.
        """
        size = how.vocabulary_size
        ids = list(range(0, size, max(1, size // _TRIED_TOKENS)))[:_TRIED_TOKENS]
        ids = [ids[0], *ids]  # of the first token of a prompt nothing is said
        request = request_to_read(Row(tuple(ids[:1]), tuple(ids[1:]), False), how, self.model)
        found = self._http.ask(_COMPLETIONS, request | {"logprobs": how.listed})
        with _blaming(self.config.url):
            texts = texts_in(found, ids, self.model)
        own = {token: tokenizer.decode([token]) for token in texts}
        told = {token: (texts[token].strip(), own[token].strip()) for token in texts}
        plain = {t: pair for t, pair in told.items() if all(pair) and "\ufffd" not in "".join(pair)}
        others = {token: pair for token, pair in plain.items() if pair[0] != pair[1]}
        if len(others) > _MOST_OTHERS * len(plain):
            token, (theirs, ours) = next(iter(others.items()))
            raise ModelError(
                f"{self.config.url}: expected the tokenizer of teacher.path, found that "
                f"{len(others)} of {len(plain)} tokens mean something else (id {token}: "
                f"{excerpt(repr(theirs))} there, {excerpt(repr(ours))} here); serve that model, or "
                "name the folder of the one that is served"
            )
        checked = f"{len(plain)} tokens mean the same" if plain else "its tokens could not be read"
        return f"{self.model} at {self.config.url}, {how.listed} tokens listed a step; {checked}"

    def respond(
        self,
        asked: Sequence[Asked],
        how: Asking,
        keep: Callable[[int, Answer], None],
    ) -> list[Answer]:
        """See :class:`tdistill.teacher.listing.teacher.Engine`."""

        def one(place: int, wanted: Asked) -> Answer:
            found = self._http.ask(_COMPLETIONS, request_for(wanted, how, self.model))
            with _blaming(self.config.url):
                answer = response_in(found, wanted, how, self.model)
            keep(place, answer)
            return answer

        return self._all(one, asked)

    def read(self, rows: Sequence[Row], how: Asking) -> list[tuple[Step, ...]]:
        """See :class:`tdistill.teacher.listing.teacher.Engine`."""

        def one(_: int, row: Row) -> tuple[Step, ...]:
            found = self._http.ask(_COMPLETIONS, request_to_read(row, how, self.model))
            with _blaming(self.config.url):
                return steps_in(found, row, how, self.model)

        return self._all(one, rows)

    def stop(self) -> None:
        """See :class:`tdistill.teacher.listing.teacher.Engine`; what is under way is kept."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _all(self, one: Callable[[int, _Asked], _Found], asked: Sequence[_Asked]) -> list[_Found]:
        """Ask for all, some at a time; after a failure those under way are waited for and kept.

        The first failure, of whichever unit, calls off all that waits: it is the reason for the
        others.
        """
        model = self.model  # known before threads ask for it
        assert model

        def guarded(place: int, wanted: _Asked) -> _Found:
            try:
                return one(place, wanted)
            except BaseException as error:
                self._failure = self._failure or error
                self._pool.shutdown(wait=False, cancel_futures=True)
                raise

        try:
            # In order, by result(): as_completed() never hears of what shutdown() has cancelled.
            begun = [self._pool.submit(guarded, place, x) for place, x in enumerate(asked)]
            return [future.result() for future in begun]
        except BaseException as error:
            self.stop()
            raise self._failure or error from None


class _blaming:
    """Say whose answer was wrong."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __enter__(self) -> None:
        """Nothing."""

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Turn a wrong answer into an error for people."""
        if isinstance(error, WrongAnswer):
            raise ServerError(f"{self.url}: {error}; nothing of it was kept") from error
