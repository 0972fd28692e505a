"""pyvips, on one core: flips an image again and again. The protocol is that of benchmarks/cost/bare.py."""

import resource
import sys
from pathlib import Path

import pyvips


def flip(source: bytes, quality: int, kind: str) -> bytes:
    """Turn a JPEG upside down; the tables of this quality and 4:2:0 are those of the source."""
    image = pyvips.Image.new_from_buffer(source, "").flip("vertical")
    answer: bytes = image.jpegsave_buffer(
        Q=quality,
        subsample_mode="on",
        interlace=kind == "progressive",
        optimize_coding=kind == "optimised",
    )
    return answer


def _main() -> None:
    source, count, quality, kind = (
        Path(sys.argv[1]).read_bytes(),
        int(sys.argv[2]),
        int(sys.argv[3]),
        sys.argv[4],
    )
    pyvips.cache_set_max(0)
    answer = flip(source, quality, kind)
    print("warm", flush=True)
    sys.stdin.read()
    before = resource.getrusage(resource.RUSAGE_SELF)
    for _ in range(count):
        flip(source, quality, kind)
    after = resource.getrusage(resource.RUSAGE_SELF)
    spent_s = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    print(spent_s, len(answer), flush=True)


if __name__ == "__main__":
    _main()
