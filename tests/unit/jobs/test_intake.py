"""Intake: the items of an upload are those that were packed, however it arrives, within the limits."""

import asyncio
import bz2
import gzip
import io
import os
import random
import resource
import shutil
import struct
import subprocess
import tarfile
import zipfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import aclosing, suppress
from dataclasses import replace
from io import FileIO
from pathlib import Path

import pytest
from support.asgi import run
from support.memory import memory_directory

from server.errors import BadArchive, MalformedMultipart, ServiceError, TooManyItems, UploadTooLarge
from server.jobs.blobs import Directory
from server.jobs.intake import Limits, items, shown

ZIP, TAR, FORM = "application/zip", "application/x-tar", "multipart/form-data; boundary=cut"
LIMITS = Limits(items=50, bytes=1 << 27, item_bytes=1 << 26, ratio=50)

#: Neither more nor less than one block of a tar, and what looks like a boundary, among them.
FILES = {
    "images/a.jpg": b"first" * 30,
    "images/b c.png": b"",
    "ü.webp": b"\r\n--cu\r\n--cu",
    "images/block": bytes(range(256)) * 2,
}
TAR_END = 2 * 512

#: `zip` writes names as its locale says.
UTF_8 = os.environ | {"LC_ALL": "C.UTF-8"}

Packed = tuple[str, bytes]


def zipped(files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = compression
            with archive.open(info, "w") as member:
                member.write(content)
    return out.getvalue()


def tarred(files: dict[str, bytes], tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    """Make a tar without the padding to the record of a tape."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tar_format) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        end = archive.offset
    return out.getvalue()[: end + TAR_END]


def special(kind: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("special")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    return out.getvalue()


def form(files: Iterable[tuple[str, bytes]]) -> bytes:
    return b"".join(part(name, content) for name, content in files) + b"--cut--\r\n"


def part(name: str, content: bytes) -> bytes:
    head = f'--cut\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'
    return head.encode() + content + b"\r\n"


SMALL = {
    "zip": (ZIP, zipped(FILES)),
    "stored zip": (ZIP, zipped(FILES, zipfile.ZIP_STORED)),
    "tar": (TAR, tarred(FILES)),
    "tar.gz": (TAR, gzip.compress(tarred(FILES))),
    "form": (FORM, form(FILES.items())),
}
each_small = pytest.mark.parametrize("small", SMALL.values(), ids=SMALL.keys())


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where the items are: some tests take thousands of uploads, and none of them is to be durable."""
    with memory_directory() as directory:
        yield directory


@pytest.fixture
def new_file(folder: Path) -> Callable[[], FileIO]:
    blobs = Directory(folder / "blobs")
    blobs.prepare()
    return blobs.new


@pytest.fixture(autouse=True)
def nothing_is_left_behind(folder: Path) -> Iterator[None]:
    def state() -> tuple[int, list[Path]]:
        return len(os.listdir("/proc/self/fd")), sorted((folder / "blobs").rglob("*"))  # noqa: PTH208 counted

    run(asyncio.sleep(0))  # whatever the first event loop of a process opens for good
    before = state()
    yield
    assert state() == before


@pytest.fixture
def small_disk() -> Iterator[int]:
    """No file of this process may grow beyond what this returns, in bytes."""
    limit_bytes = 2 << 20
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    yield limit_bytes
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def arriving(chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        await asyncio.sleep(0)
        yield chunk


async def taken(
    new_file: Callable[[], FileIO], content_type: str, chunks: Iterable[bytes], limits: Limits = LIMITS
) -> list[Packed]:
    found = []
    async with aclosing(items(content_type, arriving(chunks), new_file, limits)) as batch:
        async for item in batch:
            assert item.index == len(found)
            item.file.seek(0)
            found.append((shown(item.name), item.file.read()))
    return found


def take(
    new_file: Callable[[], FileIO], content_type: str, body: bytes, limits: Limits = LIMITS
) -> list[Packed]:
    """Take the items of an upload that arrives in chunks of 64 KiB."""
    found: list[Packed] = []

    async def test() -> None:
        chunks = (body[start : start + 65_536] for start in range(0, len(body), 65_536))
        found.extend(await taken(new_file, content_type, chunks, limits))

    run(test())
    return found


def refusal(
    new_file: Callable[[], FileIO], content_type: str, body: bytes, limits: Limits = LIMITS
) -> ServiceError:
    with pytest.raises(ServiceError) as raised:
        take(new_file, content_type, body, limits)
    return raised.value


# --- what comes out --------------------------------------------------------------------------------------


@each_small
def test_the_items_do_not_depend_on_how_the_bytes_arrive(
    new_file: Callable[[], FileIO], small: tuple[str, bytes]
) -> None:
    content_type, body = small

    async def test() -> None:
        assert await taken(new_file, content_type, [body]) == list(FILES.items())
        assert await taken(new_file, content_type, [body[i : i + 1] for i in range(len(body))]) == list(
            FILES.items()
        )
        for cut in range(len(body) + 1):
            assert await taken(new_file, content_type, [body[:cut], b"", body[cut:]]) == list(FILES.items())

    run(test())


@pytest.mark.parametrize(
    "command",
    [
        *("zip -q -r - .", "zip -q -0 -r - .", "zip -q -r -fz ../out.zip ."),
        *("tar -c .", "tar -cz ."),
        *(f"tar -c --format={each} ." for each in ("ustar", "pax", "gnu", "oldgnu")),
    ],
)
def test_what_the_usual_tools_pack_is_taken(
    new_file: Callable[[], FileIO], tmp_path: Path, command: str
) -> None:
    packed = tmp_path / "packed"
    files = FILES | {f"{'d' * 90}/{'n' * 90}": b"long", "large": random.Random(1).randbytes(300_000)}
    if "ustar" not in command:
        files[f"{'d' * 200}/{'n' * 200}"] = b"longer"
    for name, content in files.items():
        (packed / name).parent.mkdir(parents=True, exist_ok=True)
        (packed / name).write_bytes(content)
    program, *arguments = command.split()
    if shutil.which(program) is None:
        pytest.skip(f"no {program}")
    done = subprocess.run([program, *arguments], cwd=packed, env=UTF_8, capture_output=True, check=True)
    body = done.stdout or (tmp_path / "out.zip").read_bytes()
    found = {name.removeprefix("./"): content for name, content in take(new_file, TAR, body)}
    assert found == {name[:198] if command.startswith("tar") else name[:200]: files[name] for name in files}


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_of_each_format_is_taken(new_file: Callable[[], FileIO], tar_format: int) -> None:
    files = {f"{'d' * 90}/{'n' * 90}": b"long", **FILES}
    assert take(new_file, TAR, tarred(files, tar_format)) == list(files.items())


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["tar", "tar.gz"])
def test_a_tar_after_the_end_of_a_tar_is_not_lost(
    new_file: Callable[[], FileIO], pack: Callable[[bytes], bytes]
) -> None:
    tar = tarred(FILES)
    assert take(new_file, TAR, pack(tar + bytes(20_000))) == list(FILES.items())
    error = refusal(new_file, TAR, pack(tar + tar))
    assert isinstance(error, BadArchive)
    assert "follows the end of the tar" in error.detail


@pytest.mark.parametrize("records", [b"00", b"0", b"5", b" path=a", b"0 path=a", b"-1 a=b", b"99 a=b"])
def test_an_extended_header_that_makes_no_sense_is_refused(
    new_file: Callable[[], FileIO], records: bytes
) -> None:
    body = header(tarfile.XHDTYPE, records) + tarred({"a": b"a"})
    with pytest.raises(BadArchive):
        take(new_file, TAR, body)


def test_gzip_files_in_a_row_are_one(new_file: Callable[[], FileIO]) -> None:
    tar = tarred(FILES)
    body = gzip.compress(tar[:1000]) + gzip.compress(tar[1000:]) + bytes(1000)
    assert take(new_file, TAR, body) == list(FILES.items())


def test_a_size_that_is_no_octal_number_is_understood(new_file: Callable[[], FileIO]) -> None:
    tar = bytearray(tarred({"a": b"content"}, tarfile.GNU_FORMAT))
    tar[124:136] = b"\x80" + (7).to_bytes(11)
    assert take(new_file, TAR, with_checksum(tar)) == [("a", b"content")]


def extended(records: bytes, member: bytes) -> bytes:
    """Make a tar of one member after an extended header."""
    return header(tarfile.XHDTYPE, records) + member + bytes(TAR_END)


def test_an_extended_header_overrides_the_size(new_file: Callable[[], FileIO]) -> None:
    member = tarfile.TarInfo("a").tobuf(tarfile.USTAR_FORMAT) + b"content".ljust(512, b"\0")
    assert take(new_file, TAR, extended(b"10 size=7\n", member)) == [("a", b"content")]


def test_the_times_that_gnu_writes_are_no_part_of_the_name(new_file: Callable[[], FileIO]) -> None:
    tar = bytearray(tarred({"a": b"content"}, tarfile.GNU_FORMAT))
    tar[345:357] = b"13370000000\0"
    assert take(new_file, TAR, with_checksum(tar)) == [("a", b"content")]


def test_a_zip64_is_taken(new_file: Callable[[], FileIO]) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive, archive.open("a", "w", force_zip64=True) as member:
        member.write(b"content")
    assert take(new_file, ZIP, out.getvalue()) == [("a", b"content")]


def test_a_zip_of_more_files_than_16_bits_count_is_refused_by_its_directory(
    new_file: Callable[[], FileIO],
) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a", b"")
        archive.filelist *= 70_000  # the directory alone is what is read
    error = refusal(new_file, ZIP, out.getvalue())
    assert isinstance(error, BadArchive)
    assert "too many members" in error.detail


def test_the_content_says_what_an_archive_is_not_its_media_type(new_file: Callable[[], FileIO]) -> None:
    for _, body in list(SMALL.values())[:-1]:
        for content_type in ("", "application/octet-stream", "image/jpeg"):
            assert take(new_file, content_type, body) == list(FILES.items())
    files = {"PK": b"a tar whose first name begins like a zip"}
    assert take(new_file, ZIP, tarred(files)) == list(files.items())


@pytest.mark.parametrize(
    "small", [SMALL["tar"], SMALL["tar.gz"], SMALL["form"]], ids=["tar", "tar.gz", "form"]
)
def test_an_item_is_there_before_the_upload_has_ended(
    new_file: Callable[[], FileIO], small: tuple[str, bytes]
) -> None:
    content_type, body = small
    has_ended = False

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal has_ended
        for i in range(len(body)):
            yield body[i : i + 1]
        has_ended = True

    async def test() -> None:
        async with aclosing(items(content_type, chunks(), new_file, LIMITS)) as batch:
            assert (await anext(batch)).name == "images/a.jpg"
            assert not has_ended

    run(test())


def test_items_of_one_name_are_items_all_the_same(new_file: Callable[[], FileIO]) -> None:
    files = [("a", b"1"), ("a", b"2")]
    assert take(new_file, FORM, form(files)) == files


@pytest.mark.parametrize("kind", ["zip", "tar", "form"])
def test_an_archive_in_a_batch_is_just_an_item(new_file: Callable[[], FileIO], kind: str) -> None:
    files = {"inner.zip": zipped(FILES), "inner.tar.gz": gzip.compress(tarred(FILES))}
    content_type, body = packed(kind, files)
    assert take(new_file, content_type, body) == list(files.items())


def packed(kind: str, files: dict[str, bytes]) -> tuple[str, bytes]:
    return {
        "zip": lambda: (ZIP, zipped(files)),
        "tar": lambda: (TAR, tarred(files)),
        "form": lambda: (FORM, form(files.items())),
    }[kind]()


def test_directories_and_fields_without_a_chosen_file_are_no_items(new_file: Callable[[], FileIO]) -> None:
    files = {"a": b"1", "directory/": b"", "b": b"2"}
    wanted = [("a", b"1"), ("b", b"2")]
    assert take(new_file, ZIP, zipped(files)) == wanted
    assert take(new_file, TAR, tarred(files)) == wanted
    assert take(new_file, FORM, form([("a", b"1"), ("", b""), ("b", b"2")])) == wanted


def test_content_is_an_item_whatever_its_name(new_file: Callable[[], FileIO]) -> None:
    for name in ("", "a/"):
        files = [("a", b"1"), (name, b"content"), ("b", b"2")]
        assert take(new_file, ZIP, zipped(dict(files))) == files
        assert take(new_file, TAR, tarred(dict(files), tarfile.GNU_FORMAT)) == files
        assert take(new_file, FORM, form(files)) == files
    member = tarfile.TarInfo("a").tobuf(tarfile.USTAR_FORMAT) + b"content".ljust(512, b"\0")
    assert take(new_file, TAR, extended(b"8 path=\n10 size=7\n", member)) == [("", b"content")]
    assert take(new_file, TAR, tarred({"": b""}, tarfile.GNU_FORMAT)) == [("", b"")]
    assert take(new_file, ZIP, zipped({"": b""})) == [("", b"")]
    error = refusal(new_file, FORM, form([("", b"content")] * 51))
    assert "more than 50 items" in error.detail


# --- names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["zip", "tar", "form"])
def test_names_are_kept_for_people_and_never_become_paths(
    new_file: Callable[[], FileIO], folder: Path, kind: str
) -> None:
    names = ["../../etc/passwd", "/etc/passwd", "..", ".", "x" * 4_000, "a\tb\x1b[31m\u202ec", "~", "$(id)"]
    before = sorted(folder.rglob("*"))
    content_type, body = packed(kind, {name: name.encode() for name in names})
    found = take(new_file, content_type, body)
    assert [content.decode() for _, content in found] == names
    assert [name for name, _ in found] == [*names[:4], "x" * 200, "a\ufffdb\ufffd[31m\ufffdc", *names[6:]]
    assert sorted(folder.rglob("*")) == before


def test_a_name_in_an_archive_ends_at_a_nul(new_file: Callable[[], FileIO]) -> None:
    body = zipped({"a.jpg_b": b"content"}).replace(b"a.jpg_b", b"a.jpg\0b")
    assert take(new_file, ZIP, body) == [("a.jpg", b"content")]
    tar = bytearray(tarred({"a.jpg_b": b"content"}, tarfile.USTAR_FORMAT).replace(b"a.jpg_b", b"a.jpg\0b"))
    assert take(new_file, TAR, with_checksum(tar)) == [("a.jpg", b"content")]


def with_checksum(tar: bytearray) -> bytes:
    tar[148:156] = b" " * 8
    tar[148:156] = b"%06o\0 " % sum(tar[:512])
    return bytes(tar)


# --- limits ----------------------------------------------------------------------------------------------


@each_small
def test_as_many_items_as_the_limit_are_taken_and_one_more_is_refused(
    new_file: Callable[[], FileIO], small: tuple[str, bytes]
) -> None:
    assert len(take(new_file, *small, replace(LIMITS, items=4))) == 4
    error = refusal(new_file, *small, replace(LIMITS, items=3))
    assert isinstance(error, TooManyItems)
    assert error.detail == "The batch has more than 3 items. Split it into several batches."


@each_small
def test_an_item_as_large_as_the_limit_is_taken_and_a_larger_one_is_refused(
    new_file: Callable[[], FileIO], small: tuple[str, bytes]
) -> None:
    assert len(take(new_file, *small, replace(LIMITS, item_bytes=512))) == 4
    error = refusal(new_file, *small, replace(LIMITS, item_bytes=511))
    assert isinstance(error, UploadTooLarge)
    assert error.detail == "An item is larger than 511 bytes. Send a smaller image."


@each_small
def test_an_upload_as_large_as_the_limit_is_taken_and_a_larger_one_is_refused(
    new_file: Callable[[], FileIO], small: tuple[str, bytes]
) -> None:
    size = max(len(small[1]), sum(map(len, FILES.values())))
    assert len(take(new_file, *small, replace(LIMITS, bytes=size))) == 4
    error = refusal(new_file, *small, replace(LIMITS, bytes=len(small[1]) - 1))
    assert isinstance(error, UploadTooLarge)


@pytest.mark.parametrize("pack", [zipped, lambda files: gzip.compress(tarred(files))], ids=["zip", "tar.gz"])
def test_items_larger_than_the_limit_together_are_refused(
    new_file: Callable[[], FileIO], pack: Callable[[dict[str, bytes]], bytes]
) -> None:
    body = pack({"a": bytes(5_000), "b": bytes(3_000), "c": bytes(2_000)})
    assert len(take(new_file, "", body, replace(LIMITS, bytes=10_000))) == 3
    error = refusal(new_file, "", body, replace(LIMITS, bytes=9_999))
    assert isinstance(error, UploadTooLarge)
    assert error.detail == "The items are larger than 9999 bytes. Split it into several batches."


def test_a_form_of_100_000_parts_is_read_as_far_as_the_limit(new_file: Callable[[], FileIO]) -> None:
    sent = 0

    def parts() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(100_000):
            sent += 1
            yield part("a.jpg", b"content")

    async def test() -> None:
        with pytest.raises(TooManyItems):
            await taken(new_file, FORM, parts())

    run(test())
    assert sent == LIMITS.items + 1


HEADERS = {
    "x": b"".join(b"%d %05d=%s\n" % (1012, number, b"v" * 1000) for number in range(60)),
    "g": b"10 size=1\n",
    "L": b"n" * 60_000,
    "K": b"n" * 60_000,
    "V": b"",
}


@pytest.mark.parametrize("kind", HEADERS)
def test_headers_without_end_before_a_file_are_read_as_far_as_the_limit(
    new_file: Callable[[], FileIO], kind: str
) -> None:
    sent = 0

    def headers() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(10_000):
            sent += 1
            yield header(kind.encode(), HEADERS[kind])

    async def test() -> None:
        with pytest.raises(BadArchive) as raised:
            await taken(new_file, TAR, headers())
        assert "more than 16 of them before one file" in raised.value.detail

    run(test())
    assert sent == 17


def header(kind: bytes, content: bytes) -> bytes:
    """Make an extended header of a tar."""
    info = tarfile.TarInfo("header")
    info.type, info.size = kind, len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512)


def test_as_many_headers_as_the_usual_tools_write_are_taken(new_file: Callable[[], FileIO]) -> None:
    member = tarred({"short": b"content"}, tarfile.USTAR_FORMAT)[:-TAR_END]
    headers = b"".join(header(kind.encode(), HEADERS[kind]) for kind in "VgKL")
    body = (headers + member) * 20 + bytes(TAR_END)
    assert take(new_file, TAR, body) == [("n" * 200, b"content")] * 20


def directories(count: int) -> dict[str, bytes]:
    return {f"{number}/": b"" for number in range(count)}


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_as_many_directories_as_items_are_taken(new_file: Callable[[], FileIO], kind: str) -> None:
    files = {f"{number}/a": b"content" for number in range(LIMITS.items)}
    content_type, body = packed(kind, directories(LIMITS.items) | files)
    assert take(new_file, content_type, body) == list(files.items())


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (ZIP, zipped({"a": b"content"} | directories(100))),
        (TAR, tarred({"a": b"content"} | directories(51))),
        (TAR, gzip.compress(tarred({"a": b"content"} | directories(51)))),
        (FORM, form([("a", b"content"), *[("", b"")] * 51])),
    ],
)
def test_more_directories_or_empty_fields_than_items_are_refused(
    new_file: Callable[[], FileIO], content_type: str, body: bytes
) -> None:
    error = refusal(new_file, content_type, body)
    assert isinstance(error, TooManyItems)
    assert "more than 100 members" in error.detail or "more than 50 directories or fields" in error.detail


def test_an_image_that_compresses_very_well_is_no_bomb(new_file: Callable[[], FileIO]) -> None:
    files = {"flat.bmp": bytes(1_000_000)}
    assert take(new_file, ZIP, zipped(files)) == list(files.items())
    assert take(new_file, TAR, gzip.compress(tarred(files))) == list(files.items())


BOMBS = {
    "zip": lambda: zipped({"a": bytes(1 << 24)}),
    "zip of many": lambda: zipped({str(i): bytes(1 << 20) for i in range(40)}),
    "zip that overlaps": lambda: overlapping(40, bytes(1 << 20)),
    "zip that says it is small": lambda: saying(zipped({"a": bytes(1 << 24)}), size=1),
    "zip that says it is large": lambda: saying(zipped({"a": b"content" * 9}), size=1 << 31),
    "tar.gz": lambda: gzip.compress(tarred({"a": bytes(1 << 24)})),
    "tar.gz of nothing": lambda: gzip.compress(bytes(1 << 24)),
    "tar.gz of directories": lambda: gzip.compress(tarred({"a/": b""})[:-TAR_END] * 20_000 + bytes(TAR_END)),
}


@pytest.mark.parametrize("bomb", [BOMBS[name] for name in BOMBS if "large" not in name])
def test_a_bomb_is_stopped_when_it_expands_beyond_the_ratio(
    new_file: Callable[[], FileIO], small_disk: int, bomb: Callable[[], bytes]
) -> None:
    body = bomb()
    assert len(body) * 10 < small_disk
    error = refusal(new_file, "", body, replace(LIMITS, items=50_000, ratio=10))
    assert isinstance(error, BadArchive)


def test_a_zip_that_says_that_it_is_larger_than_it_is_takes_no_more_than_it_is(
    new_file: Callable[[], FileIO], small_disk: int
) -> None:
    body = BOMBS["zip that says it is large"]()
    assert small_disk < 1 << 31
    assert take(new_file, ZIP, body) == [("a", b"content" * 9)]


def saying(body: bytes, size: int) -> bytes:
    """Change the size that the directory and the header of a zip of one member say."""
    changed = bytearray(body)
    struct.pack_into("<L", changed, 22, size)
    struct.pack_into("<L", changed, changed.rindex(b"PK\1\2") + 24, size)
    return bytes(changed)


def overlapping(members: int, content: bytes) -> bytes:
    """Make a zip whose directory names the same member again and again."""
    body = zipped({"a": content})
    directory, end = body.rindex(b"PK\1\2"), body.rindex(b"PK\5\6")
    entry = body[directory:end]
    counts = struct.pack("<HHL", members, members, members * len(entry))
    return body[:directory] + entry * members + body[end : end + 8] + counts + body[end + 16 :]


# --- what is refused -------------------------------------------------------------------------------------


@each_small
def test_an_upload_that_was_cut_off_is_refused(
    new_file: Callable[[], FileIO], small: tuple[str, bytes]
) -> None:
    content_type, body = small
    # A tar ends with its first empty block, a form with the second dash.
    spare_bytes = {TAR: 512, FORM: 2}.get(content_type, 0) if not body.startswith(b"\x1f\x8b") else 0

    async def test() -> None:
        for size in range(len(body) - spare_bytes):
            with pytest.raises((BadArchive, MalformedMultipart)):
                await taken(new_file, content_type, [body[:size]])

    run(test())


@each_small
def test_a_damaged_upload_is_taken_or_refused_and_nothing_else(
    new_file: Callable[[], FileIO], small: tuple[str, bytes]
) -> None:
    content_type, body = small
    dice = random.Random(body)
    refused = 0

    async def test() -> None:
        nonlocal refused
        for _ in range(300):
            damaged = bytearray(body)
            for _ in range(dice.randint(1, 3)):
                damaged[dice.randrange(len(body))] = dice.choice([0, 0xFF, dice.randrange(256)])
            try:
                await taken(new_file, content_type, [bytes(damaged)])
            except ServiceError:
                refused += 1

    run(test())
    assert refused > 20


KINDS = [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"M"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_tar_with_something_other_than_files_is_refused(
    new_file: Callable[[], FileIO], kind: bytes
) -> None:
    error = refusal(new_file, TAR, special(kind))
    assert isinstance(error, BadArchive)
    assert "`special` in the archive is a link or a device" in error.detail


@pytest.mark.parametrize("tar_format", ["gnu", "pax"])
def test_a_sparse_file_is_refused(new_file: Callable[[], FileIO], tmp_path: Path, tar_format: str) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"end")
    command = ["tar", "-c", "--sparse", f"--format={tar_format}", "sparse"]
    body = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout
    assert isinstance(refusal(new_file, TAR, body), BadArchive)


def test_a_link_in_a_zip_is_refused(new_file: Callable[[], FileIO]) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        info = zipfile.ZipInfo("special")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    assert "`special` in the archive is a link" in refusal(new_file, ZIP, out.getvalue()).detail


def test_an_encrypted_zip_is_refused(new_file: Callable[[], FileIO]) -> None:
    body = bytearray(zipped({"a": b"content"}))
    body[6] |= 1
    body[body.rindex(b"PK\1\2") + 8] |= 1
    error = refusal(new_file, ZIP, bytes(body))
    assert isinstance(error, BadArchive)
    assert error.detail == "The zip is encrypted. Send one without a password."


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_with_an_unusual_compression_is_refused(
    new_file: Callable[[], FileIO], compression: int
) -> None:
    error = refusal(new_file, ZIP, zipped({"a": b"content"}, compression))
    assert isinstance(error, BadArchive)
    assert "other than deflate" in error.detail


@pytest.mark.parametrize("body", [b"\xff\xd8\xff\xe0 an image", bz2.compress(tarred(FILES)), b"x" * 2_000])
def test_what_is_no_archive_is_refused_with_what_to_send(new_file: Callable[[], FileIO], body: bytes) -> None:
    error = refusal(new_file, "image/jpeg", body.ljust(512, b"\0"))
    assert isinstance(error, BadArchive)
    assert "for example with `zip -r images.zip images`" in error.detail


@pytest.mark.parametrize("body", [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0" + b"x" * 5_000, b"x"])
def test_a_single_image_is_sent_to_where_it_belongs(new_file: Callable[[], FileIO], body: bytes) -> None:
    detail = refusal(new_file, "image/png", body).detail
    assert detail.startswith("This is neither a form nor a zip, a tar or a tar.gz.")
    assert "a single image goes to /flip with `Prefer: respond-async`" in detail


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        *((ZIP, body) for body in (b"", zipped({}), zipped({"a/": b""}))),
        *((TAR, body) for body in (tarred({}), tarred({"a/": b""}), gzip.compress(tarred({}), mtime=0))),
    ],
)
def test_an_archive_without_files_is_refused(
    new_file: Callable[[], FileIO], content_type: str, body: bytes
) -> None:
    error = refusal(new_file, content_type, body)
    assert isinstance(error, BadArchive)
    assert "holds no file" in error.detail


@pytest.mark.parametrize(
    ("content_type", "body", "expected"),
    [
        (FORM, b"--cut--\r\n", "The form has no file."),
        (FORM, form([("", b"")]), "The form has no file."),
        ("multipart/form-data", form(FILES.items()), "The content type has no boundary."),
        ("Multipart/Form-Data; boundary=other", form(FILES.items()), "Unexpected end"),
        (
            FORM,
            b'--cut\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--cut--',
            "a field that is no file",
        ),
        (FORM, b"--cut\r\n\r\n\r\n--cut--", "Missing Content-Disposition"),
        (
            FORM,
            form([("\u00fc", b"1")]).replace("\u00fc".encode(), b"\xfc"),
            "The header of a part is not in UTF-8. ",
        ),
        (FORM, b"--cut\r\n" + b"x" * 5_000, "header length exceeded"),
        (FORM, b"--cut\r\na: b\r\n" + b" c\r\n" * 3_000, "header length exceeded"),
        (FORM, b"--cut\r\n" + b"a: b\r\n" * 9, "header count exceeded"),
        (FORM, b"", "Unexpected end"),
    ],
)
def test_a_broken_form_is_refused_with_what_to_send(
    new_file: Callable[[], FileIO], content_type: str, body: bytes, expected: str
) -> None:
    error = refusal(new_file, content_type, body)
    assert isinstance(error, MalformedMultipart)
    assert expected in error.detail
    assert "Send one file part for each image" in error.detail


def test_a_name_that_is_given_in_the_form_of_headers_alone_is_refused(new_file: Callable[[], FileIO]) -> None:
    body = form([("name", b"1")]).replace(b'filename="name"', b"filename*=UTF-8''%C3%BC.png")
    error = refusal(new_file, FORM, body)
    assert isinstance(error, MalformedMultipart)
    assert error.detail == (
        "The form names a file by `filename*` alone, which RFC 7578 forbids. "
        "Send its name as `filename`, in UTF-8."
    )
    both = form([("name", b"1")]).replace(b'filename="name"', b"filename*=UTF-8''%C3%BC.png; filename=a.png")
    assert take(new_file, FORM, both) == [("a.png", b"1")]


@pytest.mark.parametrize(
    "records",
    [b"0 a=b\n", b"-6 a=b\n", b"2 a=b\n", b"7 a=b\n", b"x a=b\n", b"a=b\n", b"11 size=-7\n", b"10 size=x\n"],
)
def test_an_extended_header_that_is_damaged_is_refused(
    new_file: Callable[[], FileIO], records: bytes
) -> None:
    member = tarfile.TarInfo("a").tobuf(tarfile.USTAR_FORMAT)
    error = refusal(new_file, TAR, extended(records, member))
    assert isinstance(error, BadArchive)
    assert "damaged" in error.detail


@pytest.mark.parametrize(
    "size",
    [
        *(b"-0000000007\0", b"\xff" * 12, b"0000000000x\0"),
        *(b"+0000000007\0", b"00000_00007\0", b"0o000000007\0", b"000007 0007\0", b"00000000008\0"),
    ],
)
def test_a_size_that_is_no_number_is_refused(new_file: Callable[[], FileIO], size: bytes) -> None:
    tar = bytearray(tarred({"a": b"content"}))
    tar[124:136] = size
    error = refusal(new_file, TAR, with_checksum(tar))
    assert isinstance(error, BadArchive)
    assert "damaged" in error.detail


@pytest.mark.parametrize("kind", HEADERS)
def test_a_header_of_a_tar_that_would_fill_memory_is_refused(
    new_file: Callable[[], FileIO], kind: str
) -> None:
    info = tarfile.TarInfo("header")
    info.type, info.size = kind.encode(), 1 << 30
    error = refusal(new_file, TAR, info.tobuf(tarfile.USTAR_FORMAT))
    assert isinstance(error, BadArchive)
    assert "an extended header of more than 65536 bytes" in error.detail


# --- how it ends -----------------------------------------------------------------------------------------


@each_small
@pytest.mark.parametrize("limits", [LIMITS, replace(LIMITS, item_bytes=1)], ids=["break", "refusal"])
def test_whatever_ends_it_early_closes_all_files_at_once(
    new_file: Callable[[], FileIO], small: tuple[str, bytes], limits: Limits
) -> None:
    content_type, body = small
    files: list[FileIO] = []

    def new() -> FileIO:
        files.append(new_file())
        return files[-1]

    async def test() -> None:
        with suppress(UploadTooLarge):
            async with aclosing(items(content_type, arriving([body]), new, limits)) as batch:
                async for _ in batch:
                    break
        assert files
        assert all(file.closed for file in files)

    run(test())


@each_small
def test_an_upload_that_breaks_leaves_nothing_open(
    new_file: Callable[[], FileIO], small: tuple[str, bytes]
) -> None:
    content_type, body = small

    async def broken() -> AsyncIterator[bytes]:
        yield body[: len(body) // 2]
        raise ConnectionResetError

    async def take_all() -> None:
        async with aclosing(items(content_type, broken(), new_file, LIMITS)) as batch:
            async for _ in batch:
                pass

    async def test() -> None:
        with pytest.raises(ConnectionResetError):
            await take_all()

    run(test())


@each_small
def test_an_intake_that_is_cancelled_leaves_nothing_open(
    new_file: Callable[[], FileIO], small: tuple[str, bytes]
) -> None:
    content_type, body = small
    waits = asyncio.Event()

    async def stalled() -> AsyncIterator[bytes]:
        yield body[: len(body) // 2]
        waits.set()
        await asyncio.Event().wait()

    async def take_all() -> None:
        async with aclosing(items(content_type, stalled(), new_file, LIMITS)) as batch:
            async for _ in batch:
                pass

    async def test() -> None:
        intake = asyncio.create_task(take_all())
        await waits.wait()
        intake.cancel()
        with pytest.raises(asyncio.CancelledError):
            await intake

    run(test())


@each_small
def test_a_full_disk_is_an_error_of_ours(small: tuple[str, bytes]) -> None:
    with pytest.raises(OSError, match="No space left"):
        take(lambda: FileIO("/dev/full", "r+b"), *small)
