"""`python -m benchmarks`."""

import signal

# Before the imports, which take a second; a shell has what it starts in the background ignore SIGINT.
for _number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(_number, signal.default_int_handler)

from benchmarks.comparison.run import main  # noqa: E402

if __name__ == "__main__":
    main()
