"""The queues, and how each is started: `make peers` and Debian's packages bring what they need.

Each has a server, worker processes that take one job at a time, and a submitter; `work.main` is the frame of
the last two. All servers listen on a socket in their own directory where they can, else on a free port.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from getpass import getuser
from pathlib import Path

from benchmarks.harness.server import ROOT, free_port
from benchmarks.peers.queues.work import IS_DURABLE, POLL_S
from server.jobs.embedded import find_program

_PEERS_VENV = ROOT / ".venv-peers"
_PACKAGE = "benchmarks.peers.queues"

#: Where Debian has servers that are not in the PATH of every user.
_PROGRAM_PATH = "/usr/sbin:/usr/local/sbin:/usr/bin:/bin"

DURABLE, SHIPPED = "durable", "as shipped"

#: Of a system whose store listens there, as all do that can.
SOCKET = "s"


@dataclass(frozen=True, slots=True)
class System:
    """A queue in one setting.

    Attributes:
        name: unique, for the command line and the results.
        title: what to call it in a table.
        fsync: when what the server acknowledges is on the disk.
        adapter: the module with its worker and its submitter.
        server: the command line of its server, from its directory and its address.
        prepare: a command to run once in its directory, before the server starts for the first time.
        is_on_port: it can only listen on a port, not on a socket file.
        is_durable: it is set up to lose nothing.
        timeout_s: after how long, at most, it runs a job again whose worker or server was killed: its lease,
            lock, heartbeat or visibility timeout, with the interval in which it looks. One that has none
            takes as long as its workers take to connect again, or to poll.
        environ: of its workers and its submitter.
        package: of Debian, that its server is in; empty for none.
        program: its server.
        is_peer: its adapter runs in the environment of the peers.
        is_service: it is our whole service, which has its own server and workers.
        is_queue_alone: it is ours, without what takes the jobs of a dead worker back.
        is_only_idle: it takes part in the idle minute only.
    """

    name: str
    title: str
    fsync: str
    adapter: str
    server: Callable[[Path, str], list[str]] = lambda _directory, _address: []
    prepare: Callable[[Path], list[str]] | None = None
    is_on_port: bool = False
    is_durable: bool = True
    timeout_s: float = 2.0
    environ: tuple[tuple[str, str], ...] = ()
    package: str = ""
    program: str = ""
    is_peer: bool = True
    is_service: bool = False
    is_queue_alone: bool = False
    is_only_idle: bool = False

    @property
    def setting(self) -> str:
        """Name the setting."""
        return DURABLE if self.is_durable else SHIPPED

    def address(self, directory: Path) -> str:
        """Choose where its server will listen."""
        return f"127.0.0.1:{free_port()}" if self.is_on_port else str(directory / SOCKET)

    def command(self, role: str, address: str) -> list[str]:
        """Return the command line of its worker (`work`) or its submitter (`submit`)."""
        python = str(_PEERS_VENV / "bin" / "python") if self.is_peer else sys.executable
        return [python, "-m", f"{_PACKAGE}.{self.adapter}", role, address]

    def own_environ(self) -> dict[str, str]:
        """Return what its worker and its submitter have in their environment."""
        return dict(self.environ) | ({IS_DURABLE: "1"} if self.is_durable else {})


def _found(program: str) -> str:
    return shutil.which(program) or shutil.which(program, path=_PROGRAM_PATH) or program


def _redis(directory: Path, address: str) -> list[str]:
    return [_found("redis-server"), "--port", "0", "--unixsocket", address, "--dir", str(directory)]


def _durable_redis(directory: Path, address: str) -> list[str]:
    return [*_redis(directory, address), "--appendonly", "yes", "--appendfsync", "always", "--save", ""]


def _valkey(directory: Path, address: str) -> list[str]:
    """As the embedded store is started."""
    options = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
    compact = ["--hash-max-listpack-value", "512", "--loglevel", "warning"]
    own = ["--port", "0", "--unixsocket", address, "--dir", str(directory)]
    return [find_program(None), *own, *options, *compact]


def _beanstalkd(_directory: Path, address: str) -> list[str]:
    return [_found("beanstalkd"), "-l", f"unix:{address}"]


def _durable_beanstalkd(directory: Path, address: str) -> list[str]:
    return [*_beanstalkd(directory, address), "-b", str(directory), "-f", "0"]


def _gearmand(directory: Path, address: str) -> list[str]:
    host, _, port = address.rpartition(":")
    return [_found("gearmand"), "--listen", host, "--port", port, "--log-file", str(directory / "log")]


def _durable_gearmand(directory: Path, address: str) -> list[str]:
    kept = ["--queue-type", "libsqlite3", "--libsqlite3-db", str(directory / "queue.sqlite3")]
    return [*_gearmand(directory, address), *kept]


def _mariadb(directory: Path, address: str) -> list[str]:
    data = ["--datadir", str(directory / "data"), "--socket", address, "--skip-networking"]
    return [_found("mariadbd"), "--no-defaults", *data, "--user", _own_user(), "--pid-file", address + ".pid"]


def _new_mariadb(directory: Path) -> list[str]:
    login = ["--auth-root-authentication-method=normal", "--skip-test-db"]
    own = [f"--datadir={directory / 'data'}", f"--user={_own_user()}"]
    return [_found("mariadb-install-db"), "--no-defaults", *login, *own]


def _own_user() -> str:
    return getuser()


_FSYNC = "appendfsync always"
_SNAPSHOTS = "none: a snapshot after an hour, after 5 minutes with 100 changes, or after 1 minute with 10,000"
_IN_MEMORY = "none: in memory"
_COMMITS = "each commit (MariaDB's default)"

_OURS = partial(System, is_peer=False)
_ON_REDIS = partial(System, package="redis-server", program="redis-server")
_BEANSTALKD = partial(
    System, title="beanstalkd", adapter="beanstalkd_jobs", package="beanstalkd", program="beanstalkd"
)
_GEARMAND = partial(
    System,
    title="gearmand",
    adapter="gearmand_jobs",
    is_on_port=True,
    package="gearman-job-server",
    program="gearmand",
)
_MARIADB = partial(
    System,
    adapter="mariadb_jobs",
    fsync=_COMMITS,
    server=_mariadb,
    prepare=_new_mariadb,
    package="mariadb-server",
    program="mariadbd",
)


def _durable_and_shipped(
    name: str, title: str, adapter: str, timeout_s: float, shipped_s: float
) -> tuple[System, System]:
    shipped = partial(_ON_REDIS, is_durable=False, timeout_s=shipped_s)
    return (
        _ON_REDIS(name, title, _FSYNC, adapter, _durable_redis, timeout_s=timeout_s),
        shipped(f"{name}-shipped", title, _SNAPSHOTS, adapter, _redis),
    )


SYSTEMS: tuple[System, ...] = (
    _OURS(
        "ours",
        "ours, the whole service",
        f"{_FSYNC}, and an fsync of each file of a job",
        "our_service",
        is_service=True,
        timeout_s=17.0,  # a lease of 15 s, and an idle consumer looks every 2 s
    ),
    _OURS("ours-store", "ours, the queue alone", _FSYNC, "our_store", _valkey, is_queue_alone=True),
    # A heartbeat of 65 s, and two looks every 5 s; as shipped it runs no job again.
    *_durable_and_shipped("rq", "RQ", "rq_jobs", 75.0, 2.0),
    # A visibility timeout of 30 s or of an hour, and a worker looks every 100 s.
    *_durable_and_shipped("celery", "Celery", "celery_jobs", 130.0, 3700.0),
    # A lock of 5 or 30 s; a job is marked in one look and given back in the next one, as often.
    *_durable_and_shipped("bullmq", "BullMQ", "bullmq_jobs", 15.0, 90.0),
    _BEANSTALKD("beanstalkd", fsync="each change (-f 0)", server=_durable_beanstalkd),
    _BEANSTALKD("beanstalkd-shipped", fsync=_IN_MEMORY, server=_beanstalkd, is_durable=False),
    _GEARMAND("gearmand", fsync="each change (SQLite)", server=_durable_gearmand),
    _GEARMAND("gearmand-shipped", fsync=_IN_MEMORY, server=_gearmand, is_durable=False),
    _MARIADB("mariadb", "a table in MariaDB, polled each second"),
    _MARIADB("mariadb-cron", "the same, polled each minute", environ=((POLL_S, "60"),), is_only_idle=True),
)


def missing(system: System, *, root: Path = ROOT, path: str | None = None) -> str | None:
    """Return why a system cannot run here, in a line that says what to install, or None if it can.

    Args:
        system: one of SYSTEMS.
        root: where the environment of the peers is.
        path: where programs are looked for, if not in PATH and the directories of servers.
    """
    if system.program and not any(shutil.which(system.program, path=each) for each in _paths(path)):
        return f"{system.name}: no {system.program}; install Debian's package {system.package}"
    if system.is_peer and not (root / ".venv-peers" / ".installed").exists():
        return f"{system.name}: its client is not installed; run `make peers`"
    return None


def _paths(path: str | None) -> tuple[str | None, ...]:
    return (None, _PROGRAM_PATH) if path is None else (path,)


def versions(systems: Iterable[System]) -> dict[str, str]:
    """Return what servers and clients say of their versions, by their names."""
    systems = tuple(systems)
    found = {
        program: _first_line([_found(program), "-v" if program == "beanstalkd" else "--version"])
        for program in sorted({each.program for each in systems if each.program})
    }
    if any(system.is_service or system.is_queue_alone for system in systems):
        found["valkey-server (ours)"] = _first_line([find_program(None), "--version"])
    if any(system.is_peer for system in systems):
        found["clients"] = _first_line([str(_PEERS_VENV / "bin" / "python"), "-c", _CLIENTS])
    return found


#: Prints the versions of the clients.
_CLIENTS = """
from importlib.metadata import version
print(*(f"{name} {version(name)}" for name in "rq celery bullmq redis greenstalk pymysql".split()), sep=", ")
"""


def _first_line(command: list[str]) -> str:
    said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    return (said.stdout or said.stderr).strip().partition("\n")[0]
