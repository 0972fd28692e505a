"""A server that gives wrong answers to any image: `python impostor.py PORT echo|garbage|late`."""

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

from PIL import Image

PORT, WAY = int(sys.argv[1]), sys.argv[2]


class Impostor(BaseHTTPRequestHandler):
    """A healthy server with wrong answers; `late` is right at first."""

    protocol_version = "HTTP/1.1"
    answered = 0

    def do_GET(self) -> None:
        self._answer(b"ok")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        Impostor.answered += 1
        if WAY == "late" and Impostor.answered <= 6:
            file = BytesIO()
            Image.open(BytesIO(body)).transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(
                file, "JPEG", quality=95
            )
            body = file.getvalue()
        elif WAY == "garbage":
            body = body[: len(body) // 2][::-1]
        self._answer(body)

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


ThreadingHTTPServer(("127.0.0.1", PORT), Impostor).serve_forever()
