"""Every way a request can fail, as one tree. No HTTP in it: statuses are in `web.problems`.

::

    ServiceError
    ├── RequestError                the request itself is wrong
    │   ├── BadParameter            unknown, repeated or malformed query parameter
    │   ├── MalformedMultipart      broken multipart body, or not exactly one file part
    │   ├── UploadTooLarge          more bytes than the limit
    │   ├── UploadTooSlow           the body did not arrive within the limit
    │   ├── TooManyItems            a batch with more items than the limit
    │   ├── BadArchive              a batch whose archive cannot be unpacked
    │   ├── KeyReused               the idempotency key of another submission
    │   ├── Unauthorized            an operator's request without the right token
    │   └── Forbidden               an operator's request from elsewhere, and no token is configured
    ├── OperationRefused            the request is fine, what was sent with it is not
    │   ├── ImageError              an operation on images refused it
    │   │   ├── UnsupportedImage    not an image, or a format outside the allow-list
    │   │   ├── DamagedImage        truncated or corrupt
    │   │   ├── TooManyPixels       larger than the limit, told from the header
    │   │   ├── TooManyFrames       more frames than the limit, told from the header
    │   │   ├── ResultTooLarge      the result has more bytes than the limit
    │   │   └── NotLossless         wanted without loss, and cannot be had so
    │   ├── TooMuchWork             an engine did not finish it within the limit
    │   └── PoisonImage             crashed every engine that tried it
    ├── JobError                    about a job or a batch
    │   ├── NoSuchJob               there is none with this id
    │   ├── NoSuchQueue             there is none of this name
    │   ├── NotDone                 it has no result, or not yet
    │   ├── Expired                 it was there, and is not kept any more
    │   ├── TooManyAttempts         each try ended in a crash or a failure of ours
    │   └── CallbackFailed          the host of a callback did not accept it
    └── TemporaryFailure            not the caller's fault: try again later
        ├── ServiceUnavailable      overload, or no memory at the moment
        ├── StoreAway               the store of the jobs does not answer
        └── QueueFull               more jobs wait than the limit
"""

from typing import ClassVar


class ServiceError(Exception):
    """A failure, with a sentence for the caller.

    Args:
        detail: what is wrong and what to do next, in words that may reach a client.
    """

    #: One short line that is the same for every occurrence (RFC 9457, section 3.1.3).
    title: ClassVar[str] = "The request failed"

    #: A detail as a client may get it, where the API document makes an example of it.
    example: ClassVar[str]

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


class TooManyItems(RequestError):
    """A batch has more items than `Settings.max_batch_items`, or more directories than that."""

    title = "The batch has too many items"


class BadArchive(RequestError):
    """The archive of a batch is damaged, encrypted, or expands beyond the limit."""

    title = "The archive cannot be unpacked"


class KeyReused(RequestError):
    """An idempotency key came with another submission before."""

    title = "The idempotency key was used for something else"
    example = "This Idempotency-Key came with another submission before. Use a new key for each submission."


class Unauthorized(RequestError):
    """An operator's request without the token, or with a wrong one."""

    title = "The token is missing or wrong"


class Forbidden(RequestError):
    """An operator's request from another machine or through a proxy, while no token is configured."""

    title = "This is for operators on the same machine"


class OperationRefused(ServiceError):
    """The request is fine, but no engine makes a result of what was sent with it.

    Attributes:
        engine_pid: the engine that refused it, for the log.
    """

    engine_pid: int | None = None


class ImageError(OperationRefused):
    """An operation on images refused the image."""


class UnsupportedImage(ImageError):
    """Not an image, or in a format outside the allow-list."""

    title = "This is not an image we accept"
    example = (
        "This is not an image in a format we accept. Send a JPEG, PNG, WebP, GIF, TIFF, "
        "BMP, AVIF, PPM or QOI file."
    )


class DamagedImage(ImageError):
    """Truncated or corrupt."""

    title = "The image is damaged"
    example = "The JPEG file is damaged: it cannot be decoded to the end. Send an intact copy."


class TooManyPixels(ImageError):
    """Larger than the pixel limit, told from the header before decoding."""

    title = "The image has too many pixels"
    example = "The image is 20000 x 20000 = 400000000 pixels; the limit is 100000000. Send a smaller one."


class TooManyFrames(ImageError):
    """More frames than the limit, told from the container before decoding."""

    title = "The image has too many frames"
    example = "The image has more than 1000 frames, which is the limit. Send fewer frames."


class ResultTooLarge(ImageError):
    """The result has more bytes than `Settings.max_result_bytes`, or would have."""

    title = "The result is too large"
    example = (
        "The result would have 600000000 bytes or more; the limit is 536870912. "
        "Ask for another format, such as jpeg or webp, or send a smaller image."
    )


class NotLossless(ImageError):
    """Wanted without loss, and cannot be had so."""

    title = "The image cannot be turned without loss"
    example = (
        "This is not possible without loss: its stored height of 1080 is no multiple of 16. Leave `path` out."
    )


class TooMuchWork(OperationRefused):
    """An engine did not finish it within `Settings.engine_timeout_s`."""

    title = "The image takes too long"
    example = "The image takes too long to process. Send a smaller or simpler one."


class PoisonImage(OperationRefused):
    """Every engine that tried this image crashed."""

    title = "The image could not be processed safely"
    example = "The image makes our decoder crash. Convert it to another format and send that."


class JobError(ServiceError):
    """About a job or a batch."""


class NoSuchJob(JobError):
    """There is no job or batch with this id."""

    title = "There is no such job"


class NoSuchQueue(JobError):
    """There is no queue of this name."""

    title = "There is no such queue"


class NotDone(JobError):
    """The job or batch has no result, or not yet."""

    title = "There is no result"


class Expired(JobError):
    """The job or batch is not kept any more."""

    title = "The job or batch has expired"


class TooManyAttempts(JobError):
    """Each try of the job ended in a crash or a failure of ours."""

    title = "The job was given up"


class CallbackFailed(JobError):
    """The host of a callback did not accept it, or may not be asked to."""

    title = "The callback was not accepted"


class TemporaryFailure(ServiceError):
    """Not the caller's fault: the same request may succeed later.

    Args:
        detail: as in `ServiceError`.
        retry_after_s: when, in whole seconds.
    """

    def __init__(self, detail: str, retry_after_s: int = 1) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class ServiceUnavailable(TemporaryFailure):
    """Overload, or a lack of memory.

    Args:
        detail, retry_after_s: as in `TemporaryFailure`.
        share: which of its shares the client would exceed; None when it is not its own doing.
    """

    title = "The service is not available"

    def __init__(self, detail: str, retry_after_s: int = 1, *, share: str | None = None) -> None:
        super().__init__(detail, retry_after_s)
        self.share = share


class StoreAway(TemporaryFailure):
    """The store of the jobs, or that of their files, does not answer."""

    title = "The job store is not available"


class QueueFull(TemporaryFailure):
    """More jobs wait than `Settings.max_queued_jobs`, or more bytes than `Settings.max_queued_bytes`."""

    title = "The queue is full"
