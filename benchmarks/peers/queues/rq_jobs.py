"""RQ: a list in Redis, and a worker that forks for every job.

Durable, a job is tried again when its process or its worker was killed (`Retry`), results are not kept, and a
worker looks every few seconds after the jobs of dead ones. Their heartbeats are good for a minute and the
interval of monitoring, so it looks as often.
"""

from redis import Redis
from rq import Queue, Retry, Worker

from benchmarks.peers.queues import work

_TRIES = 3

#: How often to look after jobs of dead workers, and to show that one's own are alive, in seconds.
_LOOK_EVERY_S = 5

#: A worker blocks for 15 seconds less than that before it looks.
_WORKER_TTL_S = 20


def _work(address: str) -> None:
    connection = Redis(unix_socket_path=address)
    options = (
        {
            "maintenance_interval": _LOOK_EVERY_S,
            "job_monitoring_interval": _LOOK_EVERY_S,
            "worker_ttl": _WORKER_TTL_S,
        }
        if work.is_durable()
        else {}
    )
    Worker([Queue(connection=connection)], connection=connection, **options).work(logging_level="WARNING")


def _connect(address: str):  # noqa: ANN202 mypy does not see this environment
    queue = Queue(connection=Redis(unix_socket_path=address))
    options = {"retry": Retry(max=_TRIES), "result_ttl": 0} if work.is_durable() else {}

    def submit(job: str) -> None:
        queue.enqueue(work.run, job, **options)

    return submit


if __name__ == "__main__":
    work.main(_work, _connect)
