"""The processes of one run that `torchrun` or `accelerate launch` started: who works, who waits.

All of them train; everything else is done by the first, while the others wait at a store that the
launcher keeps: no collective operation waits for hours. Without a launcher there is one process,
and nothing here does anything. Torch is imported where there are several.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar

from tdistill.errors import InvalidValueError, TdistillError
from tdistill.progress import tell

_HOURS = "TDISTILL_WAIT_HOURS"
_DEFAULT_HOURS = 48.0  # that a process waits for another: sampling a large teacher takes long
_PATIENCE = 60.0  # seconds that a process which failed waits to hear whether the others did, too
_SILENT = 5.0  # seconds of waiting before it is said
_ENDED = "ended"

_NUMBERS = itertools.count()  # of the teams of this process, which are the same in all processes

_Any = TypeVar("_Any")


class ProcessEnded(TdistillError, RuntimeError):
    """Another process of the run has ended, and says why: this one ends, too."""


class ProcessFailed(TdistillError, RuntimeError):
    """This process cannot go on with the others of its run."""


def process_rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int | None:
    """The number of this process on its machine, from 0; None without a launcher."""
    number = os.environ.get("LOCAL_RANK")
    return None if number is None else int(number)


def process_count() -> int:
    """How many processes the launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Whether this is the process that writes files and speaks."""
    return process_rank() == 0


def gathered(value: _Any) -> list[_Any]:
    """The values of all processes, in order, in every one: a collective operation of training."""
    if process_count() == 1:
        return [value]
    from torch import distributed

    values: list[Any] = [None] * process_count()
    distributed.all_gather_object(values, value)
    return values


def of_first(make: Callable[[], _Any]) -> _Any:
    """What the first process makes, in every one: a collective operation of training."""
    if process_count() == 1:
        return make()
    from torch import distributed

    held = [make() if is_first_process() else None]
    distributed.broadcast_object_list(held, src=0)
    made: Any = held[0]
    return made


class Team:
    """The processes of a run between its trainings: the first one leads, the others follow.

    Every process calls the same methods in the same order.

    Args:
        rank: number of this process.
        count: of the processes.
        store: where they leave each other messages: a ``torch.distributed.Store``.
        hours: that a process waits for another before it ends.
        closes: whether the process group of the trainings ends with the work.
    """

    def __init__(
        self,
        rank: int = 0,
        count: int = 1,
        store: Any = None,
        *,
        hours: float = _DEFAULT_HOURS,
        closes: bool = False,
    ) -> None:
        self.rank, self.count, self.store, self.hours = rank, count, store, hours
        self.closes = closes
        self._number = 0  # of the message

    @property
    def leads(self) -> bool:
        """Whether this is the first process."""
        return self.rank == 0

    def lead(self, work: Callable[[], object]) -> None:
        """Let the first process do something; the others go on when it is done."""
        if self.leads:
            work()
        self.told(None)

    def told(self, message: _Any) -> _Any:
        """What the first process says here, in every one; of the others it does not count."""
        if self.count == 1:
            return message
        self._number += 1
        key = str(self._number)
        if self.leads:
            self.store.set(key, json.dumps(message))
            return message
        self._wait([key], self.hours * 3600.0)
        return json.loads(self.store.get(key))

    def agreed(self, why: str | None) -> list[str | None]:
        """Why each process failed at what they did together, None where it did not.

        Raises:
            ProcessFailed: this one failed, and others do not answer: they are stuck or gone.
        """
        if self.count == 1:
            return [why]
        self._number += 1
        keys = [f"{self._number}/{rank}" for rank in range(self.count)]
        self.store.set(keys[self.rank], json.dumps(why))
        self._wait(keys, self.hours * 3600.0 if why is None else _PATIENCE)
        return [json.loads(self.store.get(key)) for key in keys]

    def __enter__(self) -> Team:
        """The team itself, while its work is done."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Tell the others if this process ends early; the first one leaves last."""
        if self.count == 1:
            return
        if error is not None:
            self.store.set(_ENDED, str(self.rank))
        self.store.set(f"left/{self.rank}", "")
        until = time.monotonic() + (_PATIENCE if error is None else _SILENT)
        others = [f"left/{rank}" for rank in range(self.count)]
        while self.leads and not self.store.check(others) and time.monotonic() < until:
            time.sleep(0.05)  # it may keep the store
        if error is None and self.closes:
            _close_group()

    def _wait(self, keys: Sequence[str], seconds: float) -> None:
        began, said, pause = time.monotonic(), False, 0.01
        while not self.store.check(list(keys)):
            waited = time.monotonic() - began
            if self.store.check([_ENDED]):
                raise ProcessEnded(f"{self._name}: another process has ended")
            if waited > seconds:
                raise ProcessFailed(
                    f"{self._name}: expected word of the others within {_span(seconds)}, found "
                    f"none; start the same command again, or set {_HOURS} higher"
                )
            if waited > _SILENT and self.rank == 1 and not said:
                said = True
                most = f"at most {_span(seconds)}"
                tell(f"  {self._name} and all after it wait for the first, {most}")
            time.sleep(pause)
            pause = min(1.0, 1.3 * pause)

    @property
    def _name(self) -> str:
        return f"process {self.rank} of {self.count}"


def _close_group() -> None:
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def launched_team() -> Team:
    """The team that a launcher started; a process alone without one.

    On machines with CUDA it also chooses the device of this process.

    Raises:
        InvalidValueError: see :func:`time_limit`.
    """
    if process_count() == 1:
        return Team()
    import torch
    from torch.distributed.rendezvous import rendezvous

    # Else transformers would load every model without weights in all processes but the first.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    store, rank, count = next(iter(rendezvous("env://", timeout=timedelta(minutes=30))))
    own = torch.distributed.PrefixStore(f"tdistill/{next(_NUMBERS)}", store)
    closes = not torch.distributed.is_initialized()
    return Team(rank, count, own, hours=time_limit(), closes=closes)


def time_limit() -> float:
    """Hours that a process waits for another, from the environment.

    Raises:
        InvalidValueError: if it says no number above 0.
    """
    text = os.environ.get(_HOURS, str(_DEFAULT_HOURS))
    try:
        hours = float(text)
    except ValueError:
        hours = 0.0
    if not hours > 0.0:
        raise InvalidValueError(f"{_HOURS}: expected hours above 0, found {text}")
    return hours


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 3600.0 else f"{seconds / 3600.0:g} hours"
