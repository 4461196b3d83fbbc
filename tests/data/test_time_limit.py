from __future__ import annotations

import signal
import threading
import time

import pytest
from data_tokenizers import CHATML, byte_level

from tdistill.data import DataConfig, chat
from tdistill.data.chat import TemplateRefusal, chat_template_of
from tdistill.data.time_limit import at_most_seconds

LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


def test_a_template_that_loops_for_ever_is_refused(monkeypatch):
    monkeypatch.setattr(chat, "_LONGEST_RENDERING", 0.2)
    started = time.monotonic()
    template = chat_template_of(byte_level(CHATML), DataConfig())
    assert "hi" in template.render([{"role": "user", "content": "hi"}], prompt=True)
    with pytest.raises(TemplateRefusal, match=r"it did not end within 0\.2 seconds"):
        chat.ChatTemplate(byte_level(LOOPS + CHATML)).render(
            [{"role": "user", "content": "hi"}], prompt=True
        )
    assert time.monotonic() - started < 5.0


def test_nothing_is_left_of_a_limit_and_a_timer_of_others_is_left_alone():
    handler = signal.getsignal(signal.SIGALRM)
    with at_most_seconds(60.0):
        inner = signal.getitimer(signal.ITIMER_REAL)[0]
        with at_most_seconds(0.001):
            time.sleep(0.01)
    assert 59.0 < inner <= 60.0
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0.0
    assert signal.getsignal(signal.SIGALRM) is handler


def test_other_threads_have_no_limit():
    done = []

    def work() -> None:
        with at_most_seconds(0.001):
            time.sleep(0.01)
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]
