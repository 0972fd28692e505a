"""Celery with Redis as its broker: a worker process that feeds a child.

Durable, a task is acknowledged after it ran and not when it is received, it is queued again when its process
was killed, each child has one task at a time, and what a killed worker held is visible again after half a
minute instead of an hour.
"""

import os

from celery import Celery

from benchmarks.peers.queues import work

_VISIBILITY_S = 30


def _app(address: str) -> Celery:
    app = Celery("queues", broker=f"redis+socket://{address}")
    app.conf.broker_connection_retry_on_startup = True
    app.conf.task_ignore_result = True
    if work.is_durable():
        app.conf.task_acks_late = True
        app.conf.task_reject_on_worker_lost = True
        app.conf.worker_prefetch_multiplier = 1
        app.conf.broker_transport_options = {"visibility_timeout": _VISIBILITY_S}
    app.task(work.run, name="run")
    return app


def _work(address: str) -> None:
    name = f"--hostname=worker-{os.getpid()}@%h"
    _app(address).worker_main(["worker", "--concurrency=1", "--loglevel=WARNING", name])


def _connect(address: str):  # noqa: ANN202 mypy does not see this environment
    return _app(address).tasks["run"].delay


if __name__ == "__main__":
    work.main(_work, _connect)
