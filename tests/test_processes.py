"""The processes of a launch between trainings: one leads, the others follow, none for ever."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import torch

from tdistill import processes
from tdistill.errors import InvalidValueError
from tdistill.processes import ProcessEnded, ProcessFailed, Team, gathered, launched_team, of_first

Play = Callable[[Team], Any]


def played(play: Play, count: int = 3, **options: Any) -> list[Any]:
    """What each of several processes returns or raises, threads standing for them."""
    store = torch.distributed.HashStore()
    store.set_timeout(timedelta(seconds=5))

    def one(rank: int) -> Any:
        try:
            with Team(rank, count, store, **options) as team:
                return play(team)
        except Exception as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def test_the_others_go_on_when_the_first_is_done():
    done: list[float] = []

    def play(team: Team) -> bool:
        def work() -> None:
            time.sleep(0.1)
            done.append(time.monotonic())

        team.lead(work)
        return len(done) == 1 and time.monotonic() >= done[0]

    assert played(play) == [True] * 3


def test_what_the_first_says_is_what_all_hear():
    def play(team: Team) -> list[Any]:
        return [team.told({"task": team.rank}), team.told([team.rank + 5, None])]

    assert played(play) == [[{"task": 0}, [5, None]]] * 3


def test_a_leader_that_ends_ends_the_others_and_alone_says_why():
    def play(team: Team) -> None:
        team.lead(lambda: (_ for _ in ()).throw(InvalidValueError("no room")))

    first, *others = played(play)
    assert (type(first), str(first)) == (InvalidValueError, "no room")
    assert [type(other) for other in others] == [ProcessEnded] * 2


def test_a_failure_that_all_share_is_agreed_on():
    reasons = ["diverged", "diverged", None]
    assert played(lambda team: team.agreed(reasons[team.rank])) == [reasons] * 3


def test_a_failure_of_one_alone_ends_it_and_then_the_others(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processes, "_PATIENCE", 0.2)

    def play(team: Team) -> Any:
        if team.rank == 1:
            return team.agreed("out of memory")
        return team.told("stuck in what all do together") if team.rank else time.sleep(0.5)

    found = played(play)
    assert found[0] is None
    assert isinstance(found[1], ProcessFailed)
    assert "process 1 of 3: expected word of the others within 0 s, found none" in str(found[1])
    assert isinstance(found[2], ProcessEnded)


def test_a_process_says_that_it_waits_and_ends_at_the_limit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(processes, "_SILENT", 0.05)

    def play(team: Team) -> None:
        if team.leads:
            time.sleep(0.5)
        team.told(None)

    _, found = played(play, count=2, hours=0.3 / 3600)
    said = capsys.readouterr().out
    assert said == "  process 1 of 2 and all after it wait for the first, at most 0 s\n"
    assert isinstance(found, ProcessFailed)
    assert "or set TDISTILL_WAIT_HOURS higher" in str(found)


def test_a_process_alone_waits_for_nobody(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    done: list[int] = []
    with launched_team() as team:
        team.lead(lambda: done.append(1))
        assert (team.told("a"), team.agreed("b"), team.count) == ("a", ["b"], 1)
    assert done == [1]
    assert gathered(3) == [3]
    assert of_first(lambda: 4) == 4


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan"])
def test_a_time_limit_that_is_none_is_refused(text: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TDISTILL_WAIT_HOURS", text)
    with pytest.raises(InvalidValueError, match="TDISTILL_WAIT_HOURS: expected hours above 0"):
        processes.time_limit()


def test_the_time_limit_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("TDISTILL_WAIT_HOURS", raising=False)
    assert processes.time_limit() == 48.0
    monkeypatch.setenv("TDISTILL_WAIT_HOURS", "0.5")
    assert processes.time_limit() == 0.5
