"""A table in MariaDB that workers poll: the article's first design, whose cron job looks once a minute.

A worker keeps the transaction open in which it has locked a row while it works, so that the server gives the
row to another worker when this one is gone.
"""

import os
import time

import pymysql

from benchmarks.peers.queues import work

_RETRY_S = 0.1
_LOST = (pymysql.err.OperationalError, pymysql.err.InterfaceError, OSError)

_TABLE = "CREATE TABLE IF NOT EXISTS jobs (id BIGINT AUTO_INCREMENT PRIMARY KEY, job TEXT NOT NULL)"
_CLAIM = "SELECT id, job FROM jobs ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED"


def _open(address: str) -> pymysql.Connection:
    connection = pymysql.connect(unix_socket=address, user="root")
    with connection.cursor() as cursor:
        # Without gap locks, so that a look at an empty table holds no insertion up.
        cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        cursor.execute("CREATE DATABASE IF NOT EXISTS queues")
        cursor.execute("USE queues")
        cursor.execute(_TABLE)
    return connection


def _work(address: str) -> None:
    poll_s = float(os.environ.get(work.POLL_S, "1"))
    while True:
        try:
            connection = _open(address)
            while True:
                if not _work_off_one(connection):
                    time.sleep(poll_s)
        except _LOST:
            time.sleep(_RETRY_S)


def _work_off_one(connection: pymysql.Connection) -> bool:
    with connection.cursor() as cursor:
        cursor.execute(_CLAIM)
        row = cursor.fetchone()
        if row is not None:
            work.run(row[1])
            cursor.execute("DELETE FROM jobs WHERE id = %s", row[0])
        connection.commit()
    return row is not None


def _connect(address: str):  # noqa: ANN202 mypy does not see this environment
    connection = _open(address)

    def put(job: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO jobs (job) VALUES (%s)", job)
        connection.commit()

    def submit(job: str) -> None:
        nonlocal connection
        try:
            put(job)
        except _LOST:
            connection = _open(address)
            put(job)

    return submit


if __name__ == "__main__":
    work.main(_work, _connect)
