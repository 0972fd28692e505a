"""Our whole service: a job is an image that is posted with `Prefer: respond-async`.

The job travels in a comment of the image. An engine that was started with `witnessed` in its PYTHONPATH reads
it there, tells the witness, and sleeps as long as it says.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from http.client import HTTPConnection, HTTPException
from io import BytesIO
from pathlib import Path

from PIL import Image

from benchmarks.peers.queues import work

_ACCEPTED = 202
_ANSWER_S = 60.0
_HEADERS = {"Prefer": "respond-async", "Content-Type": "image/jpeg"}


@cache
def _image(file: str) -> bytes:
    """Return the image of a flip, or a very small one for a job that is no flip."""
    if file:
        return Path(file).read_bytes()
    with BytesIO() as small:
        Image.linear_gradient("L").resize((8, 8)).save(small, "JPEG")
        return small.getvalue()


def marked(job: str) -> bytes:
    """Return the image of a job, with the job in its comment."""
    _, kind, *arguments = job.split(" ")
    image = _image(arguments[0] if kind == "flip" else "")
    mark = f"job:{job}\n".encode()
    return image[:2] + b"\xff\xfe" + (len(mark) + 2).to_bytes(2, "big") + mark + image[2:]


def _connect(address: str) -> Callable[[str], str]:
    """Return what submits a job, and returns the path of it."""
    host, _, port = address.rpartition(":")
    connection = HTTPConnection(host, int(port), timeout=_ANSWER_S)

    def put(body: bytes) -> str:
        connection.request("POST", "/flip?path=pixels", body, _HEADERS)
        response = connection.getresponse()
        response.read()
        if response.status != _ACCEPTED:
            raise HTTPException(str(response.status))
        return str(response.headers["location"])

    def submit(job: str) -> str:
        body = marked(job)
        with suppress(ConnectionError):
            return put(body)
        connection.close()  # a worker that is gone took its connections with it
        return put(body)

    return submit


if __name__ == "__main__":
    work.main(None, _connect)
