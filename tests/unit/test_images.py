"""The sample images are what their README says, and rendering them leaves nothing half done."""

import math
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageStat, JpegImagePlugin
from support.mapped import mapped

from images import render
from server.imaging.geometry import Turn
from server.imaging.limits import Limits
from server.imaging.pipeline import process
from server.imaging.recipe import Recipe

LANDSCAPE = render.HERE / "landscape.jpg"
TINY = render.Sample((192, 128), quality=90, grain=4.0)
#: How the standard table for the luminance's AC coefficients begins (ITU T.81, table K.5).
STANDARD_HUFFMAN = bytes.fromhex("00 01 7D 01 02 03 00 04 11 05 12 21 31 41 06 13 51 61 07")
BASELINE, PROGRESSIVE = b"\xff\xc0", b"\xff\xc2"


@pytest.fixture
def landscape() -> Iterator[Image.Image]:
    with Image.open(render.HERE / "landscape.jpg") as image:
        yield image


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small benchmark image on its first use; to render it takes seconds, however small it is."""
    return render.benchmark_image(tmp_path_factory.mktemp("images") / "benchmark.jpg", TINY)


def brightness(image: Image.Image, box: tuple[float, float, float, float]) -> float:
    left, top, right, bottom = box
    part = image.crop(
        (
            round(left * image.width),
            round(top * image.height),
            round(right * image.width),
            round(bottom * image.height),
        )
    )
    return ImageStat.Stat(part.convert("L")).mean[0]


def headers(data: bytes) -> bytes:
    return data[: data.index(b"\xff\xda")]


def test_the_landscape_is_a_baseline_jpeg_with_halved_chroma(landscape: Image.Image) -> None:
    assert (landscape.format, landscape.mode, landscape.size) == ("JPEG", "RGB", (3072, 1920))
    assert isinstance(landscape, JpegImagePlugin.JpegImageFile)
    assert JpegImagePlugin.get_sampling(landscape) == 2  # 4:2:0
    head = headers((render.HERE / "landscape.jpg").read_bytes())
    assert BASELINE in head
    assert PROGRESSIVE not in head
    assert STANDARD_HUFFMAN in head


def test_the_landscape_has_the_weight_of_a_photo() -> None:
    assert 1_800_000 <= (render.HERE / "landscape.jpg").stat().st_size <= 2_200_000


@pytest.mark.parametrize("sample", [render.LANDSCAPE, render.BENCHMARK])
def test_large_images_can_be_flipped_without_loss(sample: render.Sample) -> None:
    assert [side % 16 for side in sample.size] == [0, 0]


def test_the_sky_is_brighter_than_the_meadow(landscape: Image.Image) -> None:
    assert brightness(landscape, (0, 0, 1, 0.15)) > brightness(landscape, (0, 0.85, 1, 1)) + 40


def test_the_sun_is_at_the_right_and_the_pines_are_at_the_left(landscape: Image.Image) -> None:
    assert brightness(landscape, (0.6, 0.3, 1, 0.6)) > brightness(landscape, (0, 0.3, 0.4, 0.6)) + 20


def test_the_committed_landscape_is_what_the_script_renders(landscape: Image.Image) -> None:
    # Compared by sight, not by byte: another build of libjpeg may round otherwise.
    with Image.open(BytesIO(render.encode(render.LANDSCAPE))) as fresh:
        difference = ImageChops.difference(landscape.reduce(4), fresh.reduce(4))
    assert max(ImageStat.Stat(difference).rms) < 1


def test_the_same_seed_gives_the_same_bytes(tiny: Path) -> None:
    assert render.encode(TINY) == tiny.read_bytes()


def test_another_seed_gives_another_image(tiny: Path) -> None:
    other = render.Sample(TINY.size, TINY.quality, TINY.grain, seed=TINY.seed + 1)
    assert render.encode(other) != tiny.read_bytes()


def test_the_benchmark_image_is_rendered_on_first_use_only(tiny: Path) -> None:
    assert list(tiny.parent.iterdir()) == [tiny]
    with Image.open(tiny) as image:
        assert (image.format, image.size) == ("JPEG", TINY.size)
    first = tiny.stat()
    assert render.benchmark_image(tiny, TINY).stat() == first


def test_the_small_image_is_made_from_the_landscape(tmp_path: Path) -> None:
    path = render.small_image(tmp_path / "small.jpg")
    assert list(tmp_path.iterdir()) == [path]
    with Image.open(path) as image:
        assert (image.format, image.size) == ("JPEG", (640, 427))
        assert brightness(image, (0, 0, 1, 0.15)) > brightness(image, (0, 0.85, 1, 1)) + 40


def test_a_flip_costs_no_more_than_one_encoding_with_the_same_tables() -> None:
    source = LANDSCAPE.read_bytes()
    limits = Limits(max_pixels=10**7, max_frames=1, max_total_pixels=10**7)
    with BytesIO() as sink:
        process(mapped(source), sink, Recipe(Turn.FLIP, path="pixels"), limits)
        result = sink.getvalue()
    with Image.open(LANDSCAPE) as original, Image.open(BytesIO(result)) as flipped:
        expected = original.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        errors = ImageStat.Stat(ImageChops.difference(flipped, expected))
    psnr_db = 10 * math.log10(255**2 * sum(errors.count) / sum(errors.sum2))
    assert psnr_db >= 48
    assert len(result) == pytest.approx(len(source), rel=0.01)


@pytest.mark.parametrize("interruption", [MemoryError, KeyboardInterrupt])
def test_an_interrupted_rendering_leaves_no_file(tmp_path: Path, interruption: type[BaseException]) -> None:
    def produce() -> bytes:
        raise interruption

    with pytest.raises(interruption):
        render.write_atomically(tmp_path / "image.jpg", produce)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_rendering_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(b"old")

    def produce() -> bytes:
        raise MemoryError

    with pytest.raises(MemoryError):
        render.write_atomically(path, produce)
    assert path.read_bytes() == b"old"


def test_a_failed_write_leaves_no_part_behind(tmp_path: Path) -> None:
    in_the_way = tmp_path / "image.jpg"
    in_the_way.mkdir()
    with pytest.raises(IsADirectoryError):
        render.write_atomically(in_the_way, lambda: b"new")
    assert list(tmp_path.iterdir()) == [in_the_way]
