"""Every metric of the operator itself, named once; Prometheus reads them from `/metrics`.

Names follow controller-runtime where it has one, so that a dashboard for other operators reads this
one too. No label holds the name of an object: series would outlive it. What is said of single
deployments is made when it is asked for, in `exposition`.
"""

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

_SECONDS: Final = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)

RECONCILES: Final = Counter(
    "dovetail_operator_reconcile",
    "Reconciles by outcome: done, later, conflict or error.",
    ["controller", "result"],
)
RECONCILE_SECONDS: Final = Histogram(
    "dovetail_operator_reconcile_duration_seconds",
    "Seconds of one reconcile.",
    ["controller"],
    buckets=_SECONDS,
)
TERMINAL_ERRORS: Final = Counter(
    "dovetail_operator_terminal_errors",
    "Reconciles that found what only a person can put right, and are not tried again.",
    ["controller"],
)
ACTIVE_WORKERS: Final = Gauge(
    "dovetail_operator_active_workers", "Workers that reconcile now.", ["controller"]
)
LEADER: Final = Gauge("dovetail_operator_leader", "1 while this process holds the Lease.")
WATCH_RESTARTS: Final = Counter(
    "dovetail_operator_watch_restarts", "Watches begun again, by why.", ["kind", "reason"]
)
CACHE_OBJECTS: Final = Gauge("dovetail_operator_cache_objects", "Objects kept.", ["kind"])
MOVES: Final = Counter("dovetail_operator_moves", "Moves of a cut, by reason.", ["reason"])
LEDGER_READS: Final = Counter(
    "dovetail_operator_ledger_reads", "Reads of a pool's ledger, by outcome.", ["result"]
)
QUEUE_DEPTH: Final = Gauge("workqueue_depth", "Keys that wait.", ["name"])
QUEUE_ADDS: Final = Counter("workqueue_adds", "Keys added.", ["name"])
QUEUE_RETRIES: Final = Counter("workqueue_retries", "Keys added again after a failure.", ["name"])
QUEUE_UNFINISHED: Final = Gauge(
    "workqueue_unfinished_work_seconds", "Seconds that keys now worked on have taken.", ["name"]
)
QUEUE_SECONDS: Final = Histogram(
    "workqueue_queue_duration_seconds", "Seconds a key waits.", ["name"], buckets=_SECONDS
)
WORK_SECONDS: Final = Histogram(
    "workqueue_work_duration_seconds", "Seconds a key is worked on.", ["name"], buckets=_SECONDS
)
