"""One run of `dovetail up`, from the manifest to the summary."""

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dovetail.api import HybridDeployment
from dovetail.bundle import Bundle
from dovetail_cli.link import Trace
from dovetail_cli.local.client import EdgeClient
from dovetail_cli.local.driver import Driver, Row, load_rows, scores_of
from dovetail_cli.local.live import Live, View
from dovetail_cli.local.record import Record
from dovetail_cli.local.source import prepare
from dovetail_cli.local.state import State
from dovetail_cli.local.summary import phase_table, phases, summarise, table
from dovetail_cli.local.system import System, Wish
from dovetail_cli.output import Steps, note

_LOOK_EVERY = 0.5


@dataclass(frozen=True)
class Job:
    """What a person asked `dovetail up` for.

    Attributes:
        manifest: the manifest's file.
        deployment: its content.
        state: the state directory.
        trace: the simulated link.
        slowdown: how many times slower devices are made.
        duration: seconds after which it ends by itself.
        report: where the report goes.
        picture: where the picture over time goes, as PNG.
        port: port of the first edge.
        model: a model in place of the manifest's.
        drive: rows to send.
        rate: rounds per second.
        compare: whether all-edge and all-cloud run beside it.
    """

    manifest: Path
    deployment: HybridDeployment
    state: Path
    trace: Trace | None = None
    slowdown: float = 1.0
    duration: float | None = None
    report: Path | None = None
    picture: Path | None = None
    port: int | None = None
    model: Path | None = None
    drive: Path | None = None
    rate: float = 10.0
    compare: bool = False


def run(job: Job) -> tuple[dict[str, Any], str]:
    """Run until the time is over or Ctrl-C.

    Returns:
        The summary, and its table.

    Raises:
        DovetailError: it could not start; nothing is left running.
    """
    with State(job.state) as state:
        with Steps() as steps:
            bundle, costs, cached = prepare(job.deployment, job.manifest, state, job.model, steps)
            rows = load_rows(job.drive, bundle) if job.drive else []
        note(f"bundle {bundle.digest[:19]} {'kept from before' if cached else 'made'}")
        wish = Wish(job.deployment, job.trace, job.slowdown, job.port, job.compare)
        with System(wish, bundle, costs, state, note) as system:
            records = {name: Record(name) for name in system.edges}
            _watch(job, system, bundle, rows, records)
            elapsed = time.time() - system.ready
            summary = _summary(job, system, records, elapsed)
            if job.report is not None or job.picture is not None:
                _illustrate(job, system, records, summary, elapsed)
    text = table(summary["classes"])
    if len(summary["phases"]) > 1:
        text += "\n\n" + phase_table(summary["phases"])
    return summary, text


def _watch(
    job: Job, system: System, bundle: Bundle, rows: list[Row], records: dict[str, Record]
) -> None:
    """Look and show until it is over; every edge is looked at a last time."""
    clients = {name: EdgeClient(edge.url) for name, edge in system.edges.items()}
    view = View(system, bundle, records)
    with ExitStack() as stack:
        live = stack.enter_context(Live(view))
        if rows:
            targets = [(edge.url, records[name]) for name, edge in system.edges.items()]
            model = bundle.config.model.name
            driver = Driver(rows, targets, model, job.rate, scores_of(bundle.config))
            stack.enter_context(driver)
        asked = stack.enter_context(_asked_to_end())
        while not asked and (job.duration is None or time.time() - system.ready < job.duration):
            time.sleep(_LOOK_EVERY)
            _look(clients, records)
            live.refresh()
        if asked:
            note("stopping")
    _look(clients, records)


@contextmanager
def _asked_to_end() -> Iterator[list[int]]:
    """Signals by which somebody asked to end; empty until then.

    Noted rather than raised: what is raised between any two instructions may end up in a callback
    whose exceptions nobody sees, and then nothing ends.
    """
    seen: list[int] = []
    kept = {
        number: signal.signal(number, lambda number, _: seen.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield seen
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _look(clients: dict[str, EdgeClient], records: dict[str, Record]) -> None:
    for name, record in records.items():
        record.look(clients[name], time.time())


def _summary(
    job: Job, system: System, records: dict[str, Record], elapsed: float
) -> dict[str, Any]:
    hands = system.hand.hands
    return {
        "deployment": job.deployment.key,
        "bundle": system.bundle.digest,
        "seconds": round(elapsed, 1),
        "slowdown": job.slowdown,
        "classes": [
            summarise(record, hands[name].moves, hands[name].plan.generation)
            for name, record in records.items()
        ],
        "phases": phases(records.values(), job.trace, system.ready, elapsed),
        "events": [{"at": event.at, "text": event.text} for event in system.events],
    }


def _illustrate(
    job: Job, system: System, records: dict[str, Record], summary: dict[str, Any], elapsed: float
) -> None:
    from dovetail_cli.local.plots import Timeline
    from dovetail_cli.local.report import Story, write_picture, write_report

    main, *others = records.values()
    line = Timeline(system.ready, elapsed, main, others, main.moves, job.trace)
    if job.report is not None:
        terms, hand = system.terms[main.name], system.hand.hands[main.name]
        write_report(job.report, Story(summary, line, system.bundle.config, terms, hand))
        note(f"report: {job.report}")
    if job.picture is not None:
        write_picture(job.picture, line)
