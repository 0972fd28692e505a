"""The operations on images, as a table: no code that touches an image is imported here."""

from functools import partial
from typing import Annotated, Literal, get_args

from pydantic import Field

from server.errors import (
    DamagedImage,
    NotLossless,
    ResultTooLarge,
    TooManyFrames,
    TooManyPixels,
    UnsupportedImage,
)
from server.operations.image_cost import cost
from server.operations.registry import Expected, Operation, Outcome, Parameters, by_name

#: What a caller may ask for; turn_image translates it.
OutputFormat = Literal["jpeg", "png", "webp", "gif", "tiff", "bmp", "avif"]
Effort = Literal["low", "normal", "high"]
Strip = Literal[True, False, "location", "private"]
WantedPath = Literal["lossless", "pixels"]

#: What comes out.
ImagePath = Literal["lossless", "coefficients", "pixels"]
MediaType = Literal[
    "image/jpeg",
    "image/png",
    "image/webp",
    "image/gif",
    "image/tiff",
    "image/bmp",
    "image/avif",
    "image/x-portable-anymap",
    "image/qoi",
]

_Count = Annotated[int, Field(ge=0, lt=2**63)]


class ImageParameters(Parameters):
    """What all operations on images have in common."""

    format: Annotated[
        OutputFormat | None,
        Field(description="The format of the answer. Without it, the format that was sent."),
    ] = None
    quality: Annotated[
        Annotated[int, Field(ge=1, le=100)] | None,
        Field(
            description="Quality of a lossy answer; formats without loss ignore it. Without it, a JPEG, "
            "WebP or AVIF that stays one keeps the quality it came with; otherwise it is 90 for JPEG and "
            "WebP, and 80 for AVIF."
        ),
    ] = None
    strip: Annotated[
        Strip,
        Field(
            description="Which metadata to leave out: `location` GPS data and names of places, and with them "
            "what may contain these and cannot be read, such as the notes of a camera's maker; `private` all "
            "but copyright, usage terms, authors, credit and colours; `true` all but the colours. Texts and "
            "comments stay with `location`. Without it, all metadata stays."
        ),
    ] = False
    path: Annotated[
        WantedPath | None,
        Field(
            description="How a JPEG is turned: `lossless` moves its coefficients or refuses (422), `pixels` "
            "decodes and encodes it again. Without it, lossless where that is possible, then with nothing "
            "but the colours of a JPEG quantized again (`coefficients`), and otherwise by pixels; the header "
            "`X-Image-Path` says which."
        ),
    ] = None
    effort: Annotated[
        Effort,
        Field(
            description="How long the encoder looks for a smaller PNG, WebP or AVIF; other formats ignore "
            "it. Measured figures are in ADR 14; `low` makes an AVIF of a screenshot several times as large."
        ),
    ] = "normal"


class RotationParameters(ImageParameters):
    """What a rotation takes."""

    angle: Annotated[
        Literal[90, 180, 270],
        Expected("90, 180 or 270, clockwise"),
        Field(description="How far to turn, in degrees, clockwise."),
    ]


class TurnedImage(Outcome):
    """The image, turned.

    Attributes:
        width, height: of the canvas, in pixels.
        frames: how many there are; pages, for a TIFF.
        path: how it was made.
    """

    headers = {"X-Image-Path": "path"}  # noqa: RUF012 a class variable of the base class
    extensions = {  # noqa: RUF012 as above
        "image/jpeg": ".jpg",
        "image/png": ".png",
        "image/webp": ".webp",
        "image/gif": ".gif",
        "image/tiff": ".tiff",
        "image/bmp": ".bmp",
        "image/avif": ".avif",
        "image/x-portable-anymap": ".pnm",
        "image/qoi": ".qoi",
    }

    media_type: MediaType
    width: _Count
    height: _Count
    frames: _Count
    path: Annotated[
        ImagePath,
        Field(
            description="How the image was made. `lossless`: the coefficients of a JPEG changed places. "
            "`coefficients`: so they did, but some were mixed and quantized again, because the edge of the "
            "image lies within a block. `pixels`: decoded and encoded again."
        ),
    ]


_on_images = partial(
    Operation,
    version=1,
    parameters=ImageParameters,
    outcome=TurnedImage,
    accepts=get_args(MediaType),
    refusals=(UnsupportedImage, DamagedImage, TooManyPixels, TooManyFrames, ResultTooLarge, NotLossless),
    stages=("decode", "transform", "encode"),
    prepare="server.operations.turn_image:prepare",
    cost=cost,
)

OPERATIONS = by_name(
    _on_images(
        name="flip",
        summary="Turn upside down",
        description="Mirrors the image from top to bottom.",
        run="server.operations.turn_image:flip",
    ),
    _on_images(
        name="flop",
        summary="Mirror left to right",
        description="Mirrors the image from left to right.",
        run="server.operations.turn_image:flop",
    ),
    _on_images(
        name="rotate",
        summary="Turn clockwise",
        description="Turns the image by a quarter, a half or three quarters, clockwise.",
        parameters=RotationParameters,
        run="server.operations.turn_image:rotate",
    ),
    _on_images(
        name="transpose",
        summary="Mirror at the main diagonal",
        description="Mirrors the image at the diagonal from top left to bottom right.",
        run="server.operations.turn_image:transpose",
    ),
    _on_images(
        name="transverse",
        summary="Mirror at the other diagonal",
        description="Mirrors the image at the diagonal from top right to bottom left.",
        run="server.operations.turn_image:transverse",
    ),
    _on_images(
        name="orient",
        summary="Turn upright",
        description="Applies the EXIF orientation and nothing else.",
        run="server.operations.turn_image:orient",
    ),
)
