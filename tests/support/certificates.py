"""A self-signed certificate."""

import subprocess
from pathlib import Path

#: How long openssl may take, in seconds.
_DEADLINE_S = 60.0


def certificate(directory: Path) -> tuple[str, str]:
    """Make a self-signed certificate for localhost and 127.0.0.1; returns its path and that of its key."""
    certificate, key = str(directory / "certificate.pem"), str(directory / "key.pem")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-nodes", "-subj", "/CN=localhost"),
            # Cheaper than RSA, to make and in each handshake.
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-days", "1", "-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
        timeout=_DEADLINE_S,
    )
    return certificate, key
