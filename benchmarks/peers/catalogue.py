"""The peers, and how each is started: `make peers` installs what they need.

All have one contract. They listen on 127.0.0.1, answer `GET /healthz`, and turn by `POST /flip` what is sent:
an image, a form with a part `image`, or nothing, for the sample. SIGTERM ends them with all their processes.
"""

import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_HERE = Path(__file__).parent
_ROOT = _HERE.parents[1]
_VENV = _ROOT / ".venv-peers"

#: What sharp needs (package.json).
_OLDEST_NODE = (20, 9)


@dataclass(frozen=True, slots=True)
class Peer:
    """One of the services.

    Attributes:
        program: a file next to this one for Node.js, else the application for gunicorn.
        is_cluster: one process for each core instead of one alone.
        needs_node: runs in Node.js; the others run in a virtual environment of their own.
        has_4_2_0: writes 4:2:0 when the quality is matched, so that size and work are comparable.
    """

    name: str
    title: str
    program: str
    is_cluster: bool = False
    needs_node: bool = False
    has_4_2_0: bool = True

    def command(self) -> list[str]:
        """Return the command line; it works in every directory."""
        if self.needs_node:
            return [shutil.which("node") or "node", str(_HERE / self.program)]
        return [str(_VENV / "bin" / "gunicorn"), "-c", str(_HERE / "sync_workers.py"), self.program]

    def environ(self, *, cores: int, quality: int | None, sample: Path) -> dict[str, str]:
        """Return what to add to a clean environment, with {port} for a free port.

        Args:
            cores: how many processes a cluster has.
            quality: of JPEGs, with the tables and the plain codes of libjpeg and 4:2:0; without one the
                library uses its defaults.
            sample: the image for an empty body.
        """
        return {
            "PORT": "{port}",
            "WORKERS": str(cores if self.is_cluster else 1),
            "QUALITY": "default" if quality is None else str(quality),
            "SAMPLE": str(sample.resolve()),
            "NODE_ENV": "production",
        }


PEERS = (
    Peer("koa-jimp", "Koa and Jimp", "koa_jimp.mjs", needs_node=True, has_4_2_0=False),
    Peer(
        "koa-jimp-cluster",
        "Koa and Jimp, node:cluster",
        "koa_jimp.mjs",
        is_cluster=True,
        needs_node=True,
        has_4_2_0=False,
    ),
    Peer("koa-sharp", "Koa and sharp", "koa_sharp.mjs", needs_node=True),
    Peer(
        "koa-sharp-cluster", "Koa and sharp, node:cluster", "koa_sharp.mjs", is_cluster=True, needs_node=True
    ),
    Peer("flask-pillow", "Flask and Pillow", "flask_pillow:app"),
    Peer("flask-pillow-cluster", "Flask and Pillow, sync workers", "flask_pillow:app", is_cluster=True),
    Peer("falcon-vips", "Falcon and pyvips", "falcon_vips:app"),
    Peer("falcon-vips-cluster", "Falcon and pyvips, sync workers", "falcon_vips:app", is_cluster=True),
)


def missing(peer: Peer, *, root: Path = _ROOT, path: str | None = None) -> str | None:
    """Return why a peer cannot run here, in a line that says what to do, or None if it can.

    Args:
        peer: one of PEERS.
        root: where it is installed.
        path: where Node.js is looked for, if not in PATH.
    """
    if peer.needs_node:
        wanted = "install Node.js " + ".".join(map(str, _OLDEST_NODE)) + " or newer, then run `make peers`"
        node = shutil.which("node", path=path)
        if node is None:
            return f"{peer.name}: no Node.js; {wanted}"
        version = _version_of(node)
        if version < _OLDEST_NODE:
            return f"{peer.name}: Node.js {'.'.join(map(str, version)) or 'does not run'}; {wanted}"
        installed = root / "benchmarks" / "peers" / "node_modules" / ".installed"
    else:
        installed = root / ".venv-peers" / ".installed"
    return None if installed.exists() else f"{peer.name}: not installed; run `make peers`"


@cache
def _version_of(node: str) -> tuple[int, ...]:
    try:
        said = subprocess.run([node, "--version"], capture_output=True, text=True, check=False, timeout=20)
    except OSError:
        return ()
    return tuple(map(int, re.findall(r"\d+", said.stdout)))
