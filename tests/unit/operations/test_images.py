"""The choices of the table are those of imaging, and each operation does what its name says."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from pkgutil import resolve_name
from typing import get_args

import pytest
from PIL import Image
from PIL.Image import Transpose
from pydantic import ValidationError

from server.cluster.memory_files import memory_file
from server.errors import NotLossless, TooManyPixels
from server.imaging import codecs, recipe
from server.imaging.metadata.policy import Strip
from server.operations import images, turn_image
from server.operations.images import OPERATIONS, TurnedImage

LIMITS = {"max_pixels": 1000, "max_frames": 10, "max_total_pixels": 10_000}

TRANSPOSE_OF = {
    "flip": Transpose.FLIP_TOP_BOTTOM,
    "flop": Transpose.FLIP_LEFT_RIGHT,
    "rotate": Transpose.ROTATE_270,  # by 90 degrees, clockwise
    "transpose": Transpose.TRANSPOSE,
    "transverse": Transpose.TRANSVERSE,
    "orient": None,
}


def image() -> Image.Image:
    return Image.frombytes("RGB", (4, 3), bytes(range(36)))


def encoded(form: str = "PNG") -> bytes:
    file = BytesIO()
    image().save(file, form)
    return file.getvalue()


def run(
    name: str,
    content: bytes,
    progress: Callable[[str], None] = lambda _stage: None,
    limits: dict[str, int] | None = None,
    **parameters: object,
) -> tuple[TurnedImage, bytes]:
    """Run an operation as an engine does."""
    operation = OPERATIONS[name]
    with memory_file("source") as source, memory_file("sink") as sink:
        source.write(content)
        valid = operation.parameters.model_validate(parameters)
        outcome = resolve_name(operation.run)(source, sink, valid.model_dump(), limits or LIMITS, progress)
        return TurnedImage.model_validate(outcome), Path(f"/proc/self/fd/{sink.fileno()}").read_bytes()


def test_files_of_all_media_types_have_an_extension_of_their_own() -> None:
    extensions = TurnedImage.extensions
    assert extensions.keys() == set(get_args(images.MediaType))
    assert len(set(extensions.values())) == len(extensions)


def test_the_choices_are_those_of_imaging() -> None:
    assert set(get_args(images.OutputFormat)) == codecs.OUTPUT_FORMATS
    assert set(get_args(images.Effort)) == set(codecs.Effort)
    assert set(get_args(images.MediaType)) == {codec.media_type for codec in codecs.CODECS.values()}
    assert set(get_args(images.ImagePath)) == set(get_args(recipe.ImagePath))
    assert set(get_args(images.WantedPath)) < set(get_args(recipe.ImagePath))
    assert set(get_args(images.Strip)) == turn_image.STRIPS.keys()
    assert set(turn_image.STRIPS.values()) == set(Strip)


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_turns_the_image_and_reports_it(name: str) -> None:
    parameters = {"angle": 90} if name == "rotate" else {}
    outcome, result = run(name, encoded(), **parameters)
    transpose = TRANSPOSE_OF[name]
    expected = image() if transpose is None else image().transpose(transpose)
    with Image.open(BytesIO(result)) as turned:
        assert (turned.size, turned.tobytes()) == (expected.size, expected.tobytes())
    assert outcome == TurnedImage(
        media_type="image/png", width=expected.width, height=expected.height, frames=1, path="pixels"
    )


@pytest.mark.parametrize(("angle", "size"), [(90, (3, 4)), (180, (4, 3)), (270, (3, 4))])
def test_a_rotation_is_by_its_angle(angle: int, size: tuple[int, int]) -> None:
    outcome, _ = run("rotate", encoded(), angle=angle)
    assert (outcome.width, outcome.height) == size


def test_every_parameter_reaches_the_encoder() -> None:
    fine, _ = run("flip", encoded("JPEG"), path="pixels")
    assert fine.path == "pixels"
    outcome, result = run("flip", encoded(), format="webp", quality=1, strip=True, effort="low")
    assert outcome.media_type == "image/webp"
    assert len(result) < len(run("flip", encoded(), format="webp", quality=100, effort="low")[1])
    with pytest.raises(NotLossless):
        run("flip", encoded(), path="lossless")


def test_each_end_of_a_stage_is_reported() -> None:
    stages: list[str] = []
    run("flip", encoded(), stages.append)
    assert set(stages) == set(OPERATIONS["flip"].stages)


def test_the_limits_are_those_of_the_engine() -> None:
    with pytest.raises(TooManyPixels):
        run("flip", encoded(), limits=LIMITS | {"max_pixels": 11})


def test_an_image_that_does_not_fit_into_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise OSError

    monkeypatch.setattr("mmap.mmap", exhausted)
    with pytest.raises(TooManyPixels) as refused:
        run("flip", encoded())
    assert isinstance(refused.value.__cause__, MemoryError)


@pytest.mark.parametrize(
    "wrong",
    [
        {"angle": 90},
        {"format": "ppm"},
        {"quality": 0},
        {"quality": 101},
        {"path": "coefficients"},
        {"size": 1},
    ],
)
def test_parameters_outside_the_schema_are_not_valid(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        OPERATIONS["flip"].parameters.model_validate(wrong)
