"""The upload sink: lets a server write a request's body into a file itself, past its parser and the app."""

from io import FileIO

from server.cluster.memory_files import write_all


class UploadSink:
    """A file that the app opens for what follows of a body, and that the server may write to.

    The app opens it after it has written all that it has received so far. Bytes that reach the app after that
    close it first, so that everything lands in the order in which it arrived.

    Attributes:
        written_bytes: how much was written past the app, in bytes.
    """

    __slots__ = ("_file", "written_bytes")

    def __init__(self) -> None:
        self._file: FileIO | None = None
        self.written_bytes = 0

    @property
    def is_open(self) -> bool:
        """Whether bytes may be written; not when the app has given the upload up and closed its file."""
        return self._file is not None and not self._file.closed

    def open(self, file: FileIO) -> None:
        """Offer a file for what follows, from its current position."""
        self._file = file

    def close(self) -> None:
        """Stop accepting bytes."""
        self._file = None

    def write(self, data: memoryview) -> None:
        """Write all of it.

        Raises:
            OSError: there is no room for it; the sink is closed then.
        """
        if self._file is None:
            raise ValueError("the sink is closed")
        try:
            write_all(self._file, data)
        except OSError:
            self._file = None
            raise
        self.written_bytes += len(data)
