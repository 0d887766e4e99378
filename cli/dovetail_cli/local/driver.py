"""Drives real requests through the edges, so that there is something to see, and checks answers.

Rows come from an .npz and go round and round. Every answer is compared with the uncut model's on
the same row, and with `label` where the file has it: a number about speed is worth nothing if the
answers changed. Where several systems are compared, one round sends the same row to each, in turn
first, so that all meet the same link and the same load.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from dovetail.bundle import Bundle, BundleConfig
from dovetail.errors import DovetailError, InvalidTensor
from dovetail.npz import read_npz
from dovetail.runtime import SegmentRuntime
from dovetail.tensor import Array, check_inputs
from dovetail_cli.local.client import EdgeClient
from dovetail_cli.local.record import Point, Record

LABEL = "label"
_WAIT_AFTER_FAILURE = 0.2


@dataclass(frozen=True)
class Row:
    """One request and the answers it should get.

    Attributes:
        feed: arrays by input name, batch 1.
        whole: the uncut model's outputs.
        label: the right class; None where unknown.
    """

    feed: Mapping[str, Array]
    whole: Mapping[str, Array]
    label: int | None


def load_rows(path: Path, bundle: Bundle) -> list[Row]:
    """Read rows and let the uncut model answer them.

    Args:
        path: an .npz with one array an input, rows along axis 0, and perhaps `label`.
        bundle: whose segments, joined, are the uncut model.

    Raises:
        InvalidTensor: not such a file, or rows that do not fit the model's inputs.
    """
    config = bundle.config
    arrays = read_npz(path, InvalidTensor)
    labels = arrays.pop(LABEL, None)
    names = {spec.name for spec in config.inputs}
    counts = {len(array) for array in arrays.values() if array.ndim} | (
        {len(labels)} if labels is not None else set()
    )
    if set(arrays) != names or len(counts) != 1 or counts == {0}:
        raise InvalidTensor(
            f"{path} has the arrays {sorted(arrays)} with {sorted(counts)} rows; expected "
            f"{sorted(names)} (and perhaps {LABEL!r}) with as many rows each"
        )
    runtime = SegmentRuntime(bundle, ())
    rows = []
    for index in range(counts.pop()):
        feed = {name: array[index : index + 1] for name, array in arrays.items()}
        check_inputs(config.inputs, feed)
        live, _ = runtime.run(feed, 0, len(config.segments))
        whole = {spec.name: live[spec.name] for spec in config.outputs}
        rows.append(Row(feed, whole, None if labels is None else int(labels[index])))
    return rows


def scores_of(config: BundleConfig) -> str | None:
    """Name of the first output that is a score vector; None where there is none."""
    if all(rung.top1 is None for rung in config.rungs):
        return None
    return next(
        (o.name for o in config.outputs if len(o.shape) > 1 and o.shape[-1] not in (0, 1)), None
    )


def judge(row: Row, outputs: Mapping[str, Array], scores: str | None) -> dict[str, object]:
    """How an answer compares: `agrees`, `right` and `error` as in `Point`."""
    worst = 0.0
    for name, want in row.whole.items():
        if want.size and np.issubdtype(want.dtype, np.floating):
            scale = float(np.abs(want).max()) or 1.0
            worst = max(worst, float(np.abs(outputs[name] - want).max()) / scale)
    if scores is None:
        return {"error": worst}
    top = int(np.argmax(outputs[scores]))
    agrees = top == int(np.argmax(row.whole[scores]))
    return {
        "error": worst,
        "agrees": agrees,
        "right": None if row.label is None else top == row.label,
    }


class Driver:
    """Sends rounds of requests from a thread of its own; use as a context manager.

    Args:
        rows: what to send.
        targets: edges by the record their answers go to: (url, record).
        model: name of the model.
        rate: rounds per second at most; the next one waits for the last.
        scores: name of the score vector, if any.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        targets: Sequence[tuple[str, Record]],
        model: str,
        rate: float,
        scores: str | None,
    ) -> None:
        self._rows, self._model, self._rate, self._scores = rows, model, rate, scores
        self._targets = [(EdgeClient(url), record) for url, record in targets]
        for _, record in targets:
            record.driven = True
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._drive, name="driver", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _drive(self) -> None:
        count, due = 0, time.monotonic()
        while not self._stop.wait(max(due - time.monotonic(), 0.0)):
            turn = count % len(self._targets)
            for client, record in (*self._targets[turn:], *self._targets[:turn]):
                self._one(client, record, self._rows[count % len(self._rows)])
            count += 1
            # A round that took longer than its time is not made up for by a burst.
            due = max(due + 1 / self._rate, time.monotonic())

    def _one(self, client: EdgeClient, record: Record, row: Row) -> None:
        if self._stop.is_set():
            return
        began = time.perf_counter()
        try:
            reply = client.infer(self._model, row.feed)
        except DovetailError as error:
            seconds = time.perf_counter() - began
            record.points.append(Point(time.time(), seconds, "", failed=str(error)))
            self._stop.wait(_WAIT_AFTER_FAILURE)
            return
        point = Point(
            time.time(),
            reply.seconds,
            reply.rung,
            degraded=reply.degraded,
            **judge(row, reply.outputs, self._scores),  # type: ignore[arg-type]  # fields of Point
        )
        record.points.append(point)
