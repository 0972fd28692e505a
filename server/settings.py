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

    # A bundled picture that is missing must stop the start too, so defaults are validated as well.
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    max_body_bytes: Annotated[
        _Whole, Field(gt=0, description="Largest upload accepted, in bytes. A larger one is answered 413.")
    ] = 64 * 2**20
    upload_timeout_s: Annotated[
        _Seconds,
        Field(description="Longest time an upload may take, in seconds. Then it is answered 408."),
    ] = 60.0
    max_pixels: Annotated[
        _Whole,
        Field(
            gt=0,
            description="Most pixels in one frame, told from the header before decoding (422). "
            "An engine needs 8 bytes of memory for each, to write WebP or AVIF up to 26.",
        ),
    ] = 100_000_000
    max_frames: Annotated[
        _Whole, Field(gt=0, description="Most frames of an animation or pages of a document (422).")
    ] = 1000
    max_total_pixels: Annotated[
        _Whole,
        Field(
            gt=0,
            description="Most pixels over all frames together (422): what bounds the time of one request.",
        ),
    ] = 500_000_000
    engine_nice: Annotated[
        int,
        Field(
            ge=0,
            le=19,
            description="How far engines stand back behind workers when both want a core (nice(2)). "
            "At 0 a health check waits behind pictures.",
        ),
    ] = 10
    engine_timeout_s: Annotated[
        _Seconds,
        Field(
            description="Longest time that an engine may work on one picture, in seconds. Then the kernel "
            "ends the engine, and the request is answered 422.",
        ),
    ] = 60.0
    engine_memory_bytes: Annotated[
        _Whole,
        Field(
            ge=256 * 2**20,
            description="Most memory of an engine, in bytes of address space. A picture that needs more is "
            "answered 422.",
        ),
    ] = 2 * 2**30
    engine_max_tasks: Annotated[
        _Whole,
        Field(
            ge=0,
            description="After how many pictures an engine makes room for a fresh one, each up to a tenth "
            "sooner, so that not all do at once. 0 for never.",
        ),
    ] = 10_000
    max_wait_s: Annotated[
        _Seconds,
        Field(
            description="Longest time that a request waits for an engine, in seconds. One that would wait "
            "longer is answered 503 at once, with a `Retry-After`.",
        ),
    ] = 10.0
    max_bytes_in_flight: Annotated[
        _Whole,
        Field(
            gt=0,
            description="Most bytes that all pictures coming in and going out have together. A request that "
            "would bring more is answered 503.",
        ),
    ] = 2**30
    headers_timeout_s: Annotated[
        _Seconds,
        Field(
            description="Longest time from a connection to the end of its first request's headers, in "
            "seconds. Then the connection is closed.",
        ),
    ] = 10.0
    min_bytes_per_s: Annotated[
        _Whole,
        Field(
            gt=0,
            description="Slowest upload and download, in bytes per second. A slower upload is answered 408, "
            "a slower download is cut off.",
        ),
    ] = 16_384
    slow_after_s: Annotated[
        _Seconds,
        Field(description="Over how long the speed of an upload or download is taken, in seconds."),
    ] = 10.0
    quarantine_s: Annotated[
        _Seconds,
        Field(
            description="How long a picture that ended two engines is refused without a try, in seconds.",
        ),
    ] = 3600.0
    quarantine_dir: Annotated[
        DirectoryPath | None,
        BeforeValidator(_not_empty),
        AfterValidator(_writable),
        Field(
            description="A directory in which such pictures are kept, at most 100 of them. None are kept "
            "when it is not set."
        ),
    ] = None
    sample_image: Annotated[
        FilePath, Field(description="The picture that a request with an empty body gets flipped.")
    ] = _SAMPLE_IMAGE
    log_format: Annotated[
        LogFormat,
        Field(description="`pretty` for people, `json` for machines, `auto`: pretty on a terminal."),
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
