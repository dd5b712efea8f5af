"""Tasks of background threads are told by name and age, and stacks come with the error."""

import threading
import time

import pytest

from phantom_mega.data.watch import InFlight, report_stuck
from phantom_mega.errors import DataWorkerError


def test_tasks_are_listed_while_they_last_oldest_first():
    tasks = InFlight()
    assert tasks.describe() == "nothing that it told of"
    with tasks.at("reading a"):
        time.sleep(1.1)
        with tasks.at("decoding b"):
            assert tasks.describe() == "reading a since 1 s; decoding b since 0 s"
    assert tasks.describe() == "nothing that it told of"


def test_a_task_that_fails_has_ended():
    tasks = InFlight()
    with pytest.raises(ValueError), tasks.at("decoding"):
        raise ValueError
    assert tasks.describe() == "nothing that it told of"


def test_the_report_has_the_stacks_of_all_threads(capfd):
    tasks, leave = InFlight(), threading.Event()

    def stuck_in_here():
        with tasks.at("decoding clip_7"):
            leave.wait()

    thread = threading.Thread(target=stuck_in_here)
    thread.start()
    while "clip_7" not in tasks.describe():
        time.sleep(0.01)
    error = report_stuck("the worker hangs", tasks)
    leave.set()
    thread.join()
    assert isinstance(error, DataWorkerError)
    assert str(error) == "the worker hangs; it is at: decoding clip_7 since 0 s"
    printed = capfd.readouterr().err
    assert str(error) in printed and "in stuck_in_here" in printed and printed.count("most recent call first") >= 2
