"""Falcon (WSGI) and libvips; gunicorn's sync workers run it (sync_workers.py)."""

import os
from pathlib import Path

import falcon
import pyvips

LIMIT_BYTES = 32 * 2**20
QUALITY = os.environ["QUALITY"]
SETTINGS = {"Q": int(QUALITY), "subsample_mode": "on"} if QUALITY != "default" else {}


class Health:
    """Says that requests are answered."""

    def on_get(self, _req: falcon.Request, resp: falcon.Response) -> None:
        """Answer at once."""
        resp.text = f"ok {os.getpid()}\n"


class Flip:
    """Turns images upside down."""

    def __init__(self, sample: bytes) -> None:
        self._sample = sample

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Turn the image of a request; without one, the sample."""
        image = pyvips.Image.new_from_buffer(_body_of(req) or self._sample, "")
        resp.data = image.flip("vertical").jpegsave_buffer(**SETTINGS)
        resp.content_type = falcon.MEDIA_JPEG


def _body_of(req: falcon.Request) -> bytes:
    if (req.content_length or 0) > LIMIT_BYTES:
        raise falcon.HTTPContentTooLarge
    if (req.content_type or "").startswith(falcon.MEDIA_MULTIPART):
        return next((part.get_data() for part in req.get_media() if part.name == "image"), b"")
    body: bytes = req.stream.read(LIMIT_BYTES + 1)  # gunicorn ends it where the body ends, chunked or not
    if len(body) > LIMIT_BYTES:
        raise falcon.HTTPContentTooLarge
    return body


pyvips.cache_set_max(0)  # no request finds the operations of another
form = falcon.media.MultipartFormHandler()
form.parse_options.max_body_part_buffer_size = LIMIT_BYTES
app = falcon.App()
app.req_options.media_handlers[falcon.MEDIA_MULTIPART] = form
app.add_route("/healthz", Health())
app.add_route("/flip", Flip(Path(os.environ["SAMPLE"]).read_bytes()))
