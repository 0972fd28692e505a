"""Flask and Pillow, what one writes in 20 minutes; gunicorn's sync workers run it (sync_workers.py)."""

import os
from io import BytesIO
from pathlib import Path

from flask import Flask, Response, request
from PIL import Image

QUALITY = os.environ["QUALITY"]
SAMPLE = Path(os.environ["SAMPLE"]).read_bytes()

app = Flask(__name__)
app.config["MAX_CONTENT_LENGTH"] = 32 * 2**20


@app.get("/healthz")
def healthz() -> str:
    """Say that requests are answered."""
    return f"ok {os.getpid()}\n"


@app.post("/flip")
def flip() -> Response:
    """Turn the image upside down."""
    file = request.files.get("image")
    image = Image.open(BytesIO((file.read() if file else request.get_data(cache=False)) or SAMPLE))
    settings = {}
    if QUALITY != "default":
        settings = {"quality": int(QUALITY), "subsampling": "4:2:0", "exif": image.getexif()}
    with BytesIO() as answer:
        image.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(answer, "JPEG", **settings)
        return Response(answer.getvalue(), mimetype="image/jpeg")
