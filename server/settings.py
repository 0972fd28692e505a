"""Settings: every limit, with a default that is right for one machine.

Read from environment variables with the prefix `FLIP_`. What gunicorn already has a setting for (address,
number of workers, time-outs) is set in `gunicorn.conf.py` or on its command line.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, FilePath, ValidationError

from server.logs import LogFormat

_PREFIX = "FLIP_"
_SAMPLE_PICTURE = Path(__file__).parents[1] / "images" / "landscape.jpg"


class InvalidSettings(Exception):
    """A setting is unknown or has a wrong value; the text names it and says what was expected."""


class Settings(BaseModel):
    """All settings of the service itself."""

    # A bundled picture that is missing must stop the start too, so defaults are validated as well.
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    max_body_bytes: Annotated[
        int, Field(gt=0, description="Largest upload accepted, in bytes. A larger one is answered 413.")
    ] = 64 * 2**20
    upload_timeout_s: Annotated[
        float,
        Field(gt=0, description="Longest time an upload may take, in seconds. Then it is answered 408."),
    ] = 60.0
    max_pixels: Annotated[
        int,
        Field(
            gt=0,
            description="Most pixels in one frame, told from the header before decoding (422). "
            "An engine needs about 8 bytes of memory for each.",
        ),
    ] = 100_000_000
    max_frames: Annotated[
        int, Field(gt=0, description="Most frames of an animation or pages of a document (422).")
    ] = 1000
    max_total_pixels: Annotated[
        int,
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
    sample_picture: Annotated[
        FilePath, Field(description="The picture that a request with an empty body gets flipped.")
    ] = _SAMPLE_PICTURE
    log_format: Annotated[
        LogFormat,
        Field(description="`pretty` for people, `json` for machines, `auto`: pretty on a terminal."),
    ] = "auto"

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
        f"{_PREFIX}{'_'.join(map(str, problem['loc'])).upper()}: "
        + (
            "there is no such setting; docs/settings.md lists them"
            if problem["type"] == "extra_forbidden"
            else f"{problem['msg']} (got {problem['input']!r})"
        )
        for problem in error.errors(include_url=False)
    ]
