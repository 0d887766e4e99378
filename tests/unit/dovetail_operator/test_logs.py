"""What a log line says it is about, without being told each time."""

import json
import logging
import threading

import pytest
from opentelemetry import trace

from dovetail.errors import Unavailable
from dovetail_operator import logs
from dovetail_operator.client import Conflict
from dovetail_operator.controller import Controller
from dovetail_operator.workqueue import WorkQueue


@pytest.fixture
def lines():
    """Every line that is logged below the operator, parsed."""
    found = []

    class Keep(logging.Handler):
        def emit(self, record):
            found.append(json.loads(self.format(record)))

    log, handler = logging.getLogger("dovetail.operator"), Keep()
    handler.setFormatter(logs.JsonFormatter())
    log.addHandler(handler)
    level = log.level
    log.setLevel(logging.DEBUG)
    yield found
    log.removeHandler(handler)
    log.setLevel(level)


def worked(reconcile):
    """Work on one key with a controller of one worker, to the end."""
    queue, done = WorkQueue("logs"), threading.Event()

    def once(key):
        try:
            return reconcile(key)
        finally:
            done.set()

    about = {"uid": "u1", "generation": 7}
    controller = Controller("hd", once, lambda: None, workers=1, queue=queue, about=lambda _: about)
    queue.add("vision/page")
    controller.start()
    assert done.wait(30)
    controller.stop(30)


def test_every_line_of_a_reconcile_says_what_it_is_about(lines):
    """Verify the words of the checklist on a line from the depths and on how it ended."""

    def reconcile(key):
        logging.getLogger("dovetail.operator.client").info("asked")

    worked(reconcile)

    asked, ended = lines
    about = {"controller": "hd", "namespace": "vision", "name": "page", "uid": "u1"}
    for line in lines:
        assert line.items() >= (about | {"generation": 7, "attempt": 1}).items()
    assert asked["reconcile_id"] == ended["reconcile_id"]
    assert ended["result"] == "done"
    assert ended["duration_s"] >= 0
    assert ended["logger"] == "dovetail.operator.controller"


@pytest.mark.parametrize(
    ("error", "level", "result"),
    [
        (Unavailable("the registry is away"), "warning", "error"),
        (ValueError("a fault of ours"), "error", "error"),
        (Conflict(409, "somebody was faster"), "debug", "conflict"),
    ],
)
def test_how_a_reconcile_failed_is_said_once(lines, error, level, result):
    """Verify level, result and the words it is about."""

    def reconcile(key):
        raise error

    worked(reconcile)

    said = [line for line in lines if line["message"] != "reconciled"]
    assert [(line["level"], line["name"]) for line in said] == [(level, "page")]
    assert lines[-1]["result"] == result


def test_a_conflict_that_does_not_end_comes_back_later_each_time():
    """Verify that a name which is somebody else's costs no request every moment."""

    def reconcile(key):
        raise Conflict(409, "it is somebody else's")

    queue = WorkQueue("conflicts")
    controller = Controller("hd", reconcile, lambda: None, workers=1, queue=queue)
    for _ in range(12):
        controller._one("vision/page", 0.0)

    assert queue.failures("vision/page") == 12
    assert queue.retry("vision/page", first=0.4) > 100


def test_what_is_said_outside_of_a_block_is_about_nothing(lines):
    """Verify that words end with their block, and that a trace in use is named."""
    log = logging.getLogger("dovetail.operator")
    with logs.about(name="page"), logs.about(attempt=2):
        log.info("inside")
    context = trace.SpanContext(0xAB, 0xCD, is_remote=False)
    with trace.use_span(trace.NonRecordingSpan(context)):
        log.info("traced")
    log.info("outside")

    inside, traced, outside = lines
    assert (inside["name"], inside["attempt"]) == ("page", 2)
    assert traced["trace_id"] == f"{0xAB:032x}"
    assert not {"name", "attempt", "trace_id"} & outside.keys()
