"""Settings: every limit, with a default that is right for one machine.

Read from environment variables with the prefix `FLIP_`. What gunicorn already has a setting for (address,
number of workers, time-outs) is set in `gunicorn.conf.py` or on its command line.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    DirectoryPath,
    Field,
    FilePath,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from server.logs import LogFormat

_PREFIX = "FLIP_"

#: Whole numbers are what the kernel can take, and seconds what a clock can count.
_Whole = Annotated[int, Field(le=2**63 - 1)]
_Seconds = Annotated[float, Field(gt=0, le=1e9)]

_SAMPLE_IMAGE = Path(__file__).parents[1] / "images" / "landscape.jpg"


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


class Settings(BaseModel):
    """All settings of the service itself."""

    # A missing sample image must stop the start too, so defaults are validated as well.
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    max_body_bytes: Annotated[
        _Whole, Field(gt=0, description="Largest upload, in bytes. A larger one is answered 413.")
    ] = 64 * 2**20
    upload_timeout_s: Annotated[
        _Seconds,
        Field(description="Longest time an upload may take, in seconds. A longer upload is answered 408."),
    ] = 60.0
    max_pixels: Annotated[
        _Whole,
        Field(
            gt=0,
            description="Most pixels in one frame, read from the header before decoding; more are "
            "answered 422. An engine needs 8 bytes of memory per pixel, and up to 26 to write "
            "WebP or AVIF.",
        ),
    ] = 100_000_000
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
    engine_nice: Annotated[
        int,
        Field(
            ge=0,
            le=19,
            description="Niceness of the engines (nice(2)): a higher value lets workers run first when "
            "both need a core. At 0, health checks wait for images to be processed.",
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
            description="Limit on the address space of one engine, in bytes. An image that needs more is "
            "answered 422.",
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
    max_wait_s: Annotated[
        _Seconds,
        Field(
            description="Longest time that a request waits for an engine, in seconds. A request "
            "whose predicted wait is longer is answered 503 with `Retry-After`, before its body is read.",
        ),
    ] = 10.0
    max_bytes_in_flight: Annotated[
        _Whole,
        Field(
            gt=0,
            description="Most bytes of all uploads and results in flight. A request that would exceed "
            "this is answered 503.",
        ),
    ] = 2**30
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
    quarantine_s: Annotated[
        _Seconds,
        Field(
            description="Time for which an image that crashed two engines (a poison image) is refused "
            "without another try, in seconds.",
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
    sample_image: Annotated[
        FilePath, Field(description="Image that is flipped for a request with an empty body.")
    ] = _SAMPLE_IMAGE
    log_format: Annotated[
        LogFormat,
        Field(
            description="`pretty` for people, `json` for machines, `auto` for `pretty` on a terminal and "
            "`json` otherwise."
        ),
    ] = "auto"

    @model_validator(mode="after")
    def _has_room_for_one(self) -> Self:
        if self.max_bytes_in_flight < self.max_body_bytes:
            raise PydanticCustomError(
                "no_room", "FLIP_MAX_BYTES_IN_FLIGHT: Input should not be less than FLIP_MAX_BODY_BYTES"
            )
        return self

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
            return cls.model_validate(given)
        except ValidationError as error:
            raise InvalidSettings("\n".join(_lines(error))) from None


def _lines(error: ValidationError) -> list[str]:
    return [
        problem["msg"]  # about several, which it names
        if not problem["loc"]
        else f"{_PREFIX}{'_'.join(map(str, problem['loc'])).upper()}: "
        + (
            "there is no such setting; docs/settings.md lists them"
            if problem["type"] == "extra_forbidden"
            else f"{problem['msg']} (got {problem['input']!r})"
        )
        for problem in error.errors(include_url=False)
    ]
