"""The systemd unit, the configuration of nginx and the runbook match the code."""

import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from server.gateway import logger, preflight
from server.operations.images import OPERATIONS
from server.settings import Settings

ROOT = Path(__file__).parents[2]
UNIT = (ROOT / "deploy" / "flipcluster.service").read_text()
WORKER_UNIT = (ROOT / "deploy" / "flipcluster-worker.service").read_text()
NGINX = (ROOT / "deploy" / "nginx.conf").read_text()
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
HOME = "/opt/flipcluster"


def values(key: str, unit: str = UNIT) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", unit, flags=re.MULTILINE)


def here(path: str) -> Path:
    """Map a path of the unit to this checkout, whose interpreter may be elsewhere."""
    return Path(path.replace(f"{HOME}/.venv/bin", str(Path(sys.executable).parent)).replace(HOME, str(ROOT)))


@pytest.mark.parametrize(("unit", "count"), [(UNIT, 4), (WORKER_UNIT, 1)])
def test_the_commands_of_the_unit_exist(unit: str, count: int) -> None:
    commands = [shlex.split(line) for line in values("Exec[A-Za-z]+", unit)]
    assert len(commands) == count
    for program, *arguments in commands:
        assert here(program).is_file(), program
        if "-m" in arguments:
            assert find_spec(arguments[arguments.index("-m") + 1])
    directories = values("WorkingDirectory", unit)
    assert [(here(directory) / "gunicorn.conf.py").is_file() for directory in directories] == [True]


def test_the_worker_is_confined_as_the_service_is() -> None:
    confined = UNIT[UNIT.index("NoNewPrivileges") :]
    assert values("[A-Za-z]+", WORKER_UNIT)[-len(values("[A-Za-z]+", confined)) :] == values(
        "[A-Za-z]+", confined
    )


def test_the_check_comes_before_the_start_and_before_the_reload() -> None:
    checks = [f"{HOME}/.venv/bin/python -m server.check"]
    assert values("ExecStartPre") == checks
    assert values("ExecReload") == [*checks, "/bin/kill -HUP $MAINPID"]


def test_systemd_waits_for_a_stop_that_meets_a_reload() -> None:
    conf = (ROOT / "gunicorn.conf.py").read_text()
    (graceful_timeout_s,) = re.findall(r"^graceful_timeout = (\d+)", conf, flags=re.MULTILINE)
    (stop_s,) = values("TimeoutStopSec")
    assert int(stop_s) >= preflight.DEADLINE_S + preflight.GRACE_S + 2 * int(graceful_timeout_s)


@pytest.mark.parametrize("text", [UNIT, WORKER_UNIT])
def test_systemd_accepts_the_unit_where_there_is_one_to_ask(text: str, tmp_path: Path) -> None:
    assert re.findall(r"^\[(\w+)\]$", text, flags=re.MULTILINE) == ["Unit", "Service", "Install"]
    if shutil.which("systemd-analyze"):
        unit = tmp_path / "flipcluster.service"
        unit.write_text(
            text.replace(f"{HOME}/.venv/bin", str(Path(sys.executable).parent)).replace(HOME, str(ROOT))
        )
        result = subprocess.run(
            ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False, timeout=60
        )
        assert (result.returncode, result.stderr) == (0, "")


def location(of: str) -> str:
    """Return what nginx does in a location, without comments."""
    (found,) = re.findall(
        rf"^    location {re.escape(of)} \{{\n(.*?)^    \}}", NGINX, flags=re.MULTILINE | re.DOTALL
    )
    return re.sub(r"#.*", "", found)


def megabytes(text: str) -> int:
    ((number),) = re.findall(r"client_max_body_size (\d+)m;", text)
    return int(number) << 20


def test_nginx_lets_the_service_itself_refuse_what_is_too_large() -> None:
    settings = Settings()
    server = re.sub(r"^    location .*?^    \}", "", NGINX, flags=re.MULTILINE | re.DOTALL)
    assert settings.max_body_bytes < megabytes(server) < 1.1 * settings.max_body_bytes
    assert settings.max_batch_bytes < megabytes(location("= /batches")) < 1.1 * settings.max_batch_bytes


def test_nginx_repeats_a_post_only_where_an_image_is_answered_at_once() -> None:
    images = f"~ ^/({'|'.join(OPERATIONS)})$"
    assert re.findall(r"proxy_next_upstream [^;]*non_idempotent", NGINX) == re.findall(
        r"proxy_next_upstream [^;]*non_idempotent", location(images)
    )
    assert re.search(r'if \(\$http_prefer != ""\)', location(images))


def test_nginx_waits_longer_for_the_answer_to_a_batch() -> None:
    # All of a zip is unpacked after its last byte, at 10 MB/s or more.
    (wait_s,) = re.findall(r"proxy_read_timeout (\d+)s;", location("= /batches"))
    assert int(wait_s) * 10 * 10**6 > Settings().max_batch_bytes


def test_nginx_says_that_a_request_has_come_through_it() -> None:
    assert re.search(r"^    proxy_set_header X-Forwarded-For ", NGINX, flags=re.MULTILINE)
    # One in a location would take away all those of the server.
    assert not re.search(r"^        +proxy_set_header", NGINX, flags=re.MULTILINE)


def test_the_runbook_explains_every_event_and_no_other() -> None:
    table = RUNBOOK.partition("## Events")[2].partition("\n## ")[0]
    explained = {
        event
        for row in re.findall(r"^\| (`.+?) \|", table, re.MULTILINE)
        for event in re.findall("`(.+?)`", row)
    }
    sources = [ROOT / "gunicorn.conf.py", *(ROOT / "server").rglob("*.py")]
    code = "\n".join(path.read_text() for path in sources)
    logged = set(re.findall(r'\blog\.(?:debug|info|warning|error)\(\s*"(\w+)"', code))
    assert logged >= {"worker_online", "request"}
    assert explained >= logged | {event for event, _ in logger._EVENTS.values()}  # noqa: SLF001
    assert {event for event in explained if f'"{event}"' not in code} == set()
