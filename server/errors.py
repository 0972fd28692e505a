"""Every way a request can fail, as one tree. No HTTP in it: statuses live in `web.problems`.

::

    ServiceError
    ├── RequestError                the request itself is wrong
    │   ├── BadParameter            unknown, repeated or malformed query parameter
    │   ├── MalformedMultipart      broken multipart body, or not exactly one file part
    │   ├── UploadTooLarge          more bytes than the limit
    │   └── UploadTooSlow           the body did not arrive within the limit
    ├── ImageError                  the request is fine, the picture is not
    │   ├── UnsupportedImage        not an image, or a format outside the allow-list
    │   ├── DamagedImage            truncated or corrupt
    │   ├── TooManyPixels           larger than the limit, told from the header
    │   ├── TooManyFrames           more frames than the limit, told from the header
    │   ├── NotLossless             wanted without loss, and cannot be had so
    │   ├── TooMuchWork             an engine did not finish it within the limit
    │   └── PoisonImage            ended every engine that tried it
    └── ServiceUnavailable          not the caller's fault: try again later
"""

from typing import ClassVar


class ServiceError(Exception):
    """A failure with a sentence for the caller.

    Args:
        detail: what is wrong and what to do next, in words that may reach a client.
    """

    #: One short line that is the same for every occurrence (RFC 9457, section 3.1.3).
    title: ClassVar[str] = "The request failed"

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class RequestError(ServiceError):
    """The request itself is wrong."""


class BadParameter(RequestError):
    """A query parameter is unknown, repeated or malformed."""

    title = "A query parameter is wrong"


class MalformedMultipart(RequestError):
    """The multipart body is broken, or does not hold exactly one file part."""

    title = "The multipart body is wrong"


class UploadTooLarge(RequestError):
    """The body has more bytes than `Settings.max_body_bytes`."""

    title = "The upload is too large"


class UploadTooSlow(RequestError):
    """The body did not arrive within `Settings.upload_timeout_s`."""

    title = "The upload took too long"


class ImageError(ServiceError):
    """The request is fine, the picture is not.

    Attributes:
        engine_pid: the engine that found out, for the log.
    """

    engine_pid: int | None = None


class UnsupportedImage(ImageError):
    """Not an image, or in a format outside the allow-list."""

    title = "This is not an image we accept"


class DamagedImage(ImageError):
    """Truncated or corrupt."""

    title = "The image is damaged"


class TooManyPixels(ImageError):
    """Larger than the pixel limit, told from the header before decoding."""

    title = "The image has too many pixels"


class TooManyFrames(ImageError):
    """More frames than the limit, told from the container before decoding."""

    title = "The image has too many frames"


class NotLossless(ImageError):
    """Wanted without loss, and cannot be had so."""

    title = "The image cannot be turned without loss"


class TooMuchWork(ImageError):
    """An engine did not finish it within `Settings.engine_timeout_s`."""

    title = "The image takes too long"


class PoisonImage(ImageError):
    """Every engine that tried this picture died of it."""

    title = "The image could not be processed safely"


class ServiceUnavailable(ServiceError):
    """Not the caller's fault: the same request may succeed later.

    Args:
        detail: as in `ServiceError`.
        retry_after_s: when, in whole seconds.
    """

    title = "The service is not available"

    def __init__(self, detail: str, retry_after_s: int = 1) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s
