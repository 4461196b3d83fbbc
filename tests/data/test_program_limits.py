"""Programs of strangers inside this one: bounded in time and in memory."""

from __future__ import annotations

import resource
import signal
import sys
import threading
import time
from contextlib import nullcontext

import pytest
from data_tokenizers import CHATML, byte_level

from tdistill.data import DataConfig, chat, program_limits
from tdistill.data.chat import chat_template_of
from tdistill.data.program_limits import limited
from tdistill.errors import DataError

LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


def test_a_template_that_loops_for_ever_ends_the_reading_at_once(monkeypatch):
    monkeypatch.setattr(chat, "_LONGEST_RENDERING", 0.2)
    started = time.monotonic()
    template = chat_template_of(byte_level(CHATML), DataConfig())
    assert "hi" in template.render([{"role": "user", "content": "hi"}], prompt=True)
    with pytest.raises(DataError, match=r"it did not end within 0\.2 seconds"):
        chat.ChatTemplate(byte_level(LOOPS + CHATML)).render(
            [{"role": "user", "content": "hi"}], prompt=True
        )
    assert time.monotonic() - started < 5.0


def test_nothing_is_left_of_a_limit_and_a_timer_of_others_is_left_alone():
    handler = signal.getsignal(signal.SIGALRM)
    with limited(60.0, 1024):
        inner = signal.getitimer(signal.ITIMER_REAL)[0]
        with limited(0.001, 1024):
            time.sleep(0.01)
    assert 0.0 < inner <= 0.05  # seconds until the next look
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0.0
    assert signal.getsignal(signal.SIGALRM) is handler


def test_other_threads_have_no_limit():
    done = []

    def work() -> None:
        with limited(0.001, 1024):
            time.sleep(0.01)
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]


HOSTILE = {
    "a repeat": "{{ 'a' * 10**10 }}",
    "a repeat that the compiler would do": "{% if 'a' * 10**10 %}x{% endif %}",
    "a width": "{{ '%9999999999d' % 1 }}",
    "doubling": "{% set n = namespace(x='ab') %}{% for i in range(60) %}"
    "{% set n.x = n.x ~ n.x %}{% endfor %}",
    "an indent": "{{ messages|tojson(indent=10**9) }}",
}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system refuses no memory")
@pytest.mark.parametrize("program", HOSTILE.values(), ids=HOSTILE)
def test_a_template_that_eats_memory_is_refused_before_it_has_it(program, monkeypatch):
    monkeypatch.setattr(chat, "_MOST_MEMORY", 64)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="it took more than 64 MiB of memory"):
        chat.ChatTemplate(byte_level(program + CHATML)).render(
            [{"role": "user", "content": "hi"}], prompt=True
        )
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 128 * 1024  # KiB
    assert resource.getrlimit(resource.RLIMIT_AS) == limits


def test_memory_is_looked_at_where_the_system_refuses_none(monkeypatch):
    took = iter([100, 100])  # bytes, at the beginning and at the first look
    monkeypatch.setattr(program_limits, "_peak_bytes", lambda: next(took, 100 + (9 << 20)))
    monkeypatch.setattr(program_limits, "_address_space", lambda more: nullcontext())
    with pytest.raises(MemoryError, match="it took more than 8 MiB of memory"), limited(60.0, 8):
        time.sleep(5.0)


def test_more_text_than_any_row_has_is_refused(monkeypatch):
    monkeypatch.setattr(chat, "MAX_LINE_BYTES", 1000)
    with pytest.raises(DataError, match=r"it wrote 2,052 characters"):
        chat.ChatTemplate(byte_level("{{ 'ab' * 1000 }}" + CHATML)).render(
            [{"role": "user", "content": "hi"}], prompt=True
        )
