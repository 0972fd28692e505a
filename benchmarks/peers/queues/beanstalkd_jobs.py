"""beanstalkd, with greenstalk as its client: a job belongs to a connection until it is deleted.

A client does not reconnect by itself, so both sides do, as any user has to.
"""

import time

import greenstalk

from benchmarks.peers.queues import work

_RETRY_S = 0.1
_LOST = (OSError, EOFError, greenstalk.Error)


def _work(address: str) -> None:
    while True:
        try:
            with greenstalk.Client(address) as client:
                while True:
                    job = client.reserve()
                    work.run(job.body)
                    client.delete(job)
        except _LOST:
            time.sleep(_RETRY_S)


def _connect(address: str):  # noqa: ANN202 mypy does not see this environment
    client = greenstalk.Client(address)

    def submit(job: str) -> None:
        nonlocal client
        try:
            client.put(job)
        except _LOST:
            client.close()
            client = greenstalk.Client(address)
            client.put(job)

    return submit


if __name__ == "__main__":
    work.main(_work, _connect)
