"""One form for every line: readable on a terminal, JSON anywhere else, gunicorn's sentences included.

Logging is set up once for a whole process, so the tests look at processes of their own.
"""

import ast
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import gunicorn
import pytest

from server.gateway.logger import _EVENTS, _REPETITIONS
from server.logs import LogFormat

APP = """
import logging
import warnings
from pathlib import Path
from server import logs
logs.configure({log_format!r})
log = logs.get_logger("test")
"""

GUNICORN = """
import signal
import sys
from gunicorn.config import Config
from server import logs
from server.gateway.logger import gunicorn_logger
config = Config()
for name, value in {settings!r}.items():
    config.set(name, value)
gunicorn = gunicorn_logger({log_format!r})(config)
"""

FAILURE = """
try:
    raise ValueError("first line\\nsecond line")
except ValueError as error:
    {statement}
"""


def printed(program: str) -> str:
    """Return what a program wrote to standard error, which is a pipe."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], stderr=subprocess.PIPE, text=True, check=True
    )
    return done.stderr


def shown(program: str) -> str:
    """Return what a program wrote to standard error, which is a terminal."""
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0) as terminal:  # noqa: PTH123 a descriptor has no path
        process = subprocess.Popen([sys.executable, "-W", "error", "-c", program], stderr=theirs)
        os.close(theirs)
        pieces = []
        try:
            while piece := terminal.read(65536):
                pieces.append(piece)
        except OSError:  # Linux reports the end of a terminal so
            pass
        assert process.wait() == 0
    return b"".join(pieces).decode()


def app(statements: str, log_format: LogFormat = "auto") -> str:
    return APP.format(log_format=log_format) + statements


def under_gunicorn(statements: str, log_format: LogFormat = "auto", **settings: str) -> str:
    return GUNICORN.format(log_format=log_format, settings=settings) + statements


def events(text: str) -> list[dict[str, Any]]:
    """Read the lines back; every single one has to be an object."""
    return [json.loads(line) for line in text.splitlines()]


def facts(event: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name != "timestamp"}


def test_an_event_is_one_line_of_json_with_its_facts_level_and_time() -> None:
    (event,) = events(printed(app('log.error("engine_died", pid=71, signal="SIGSEGV")')))
    assert facts(event) == {"event": "engine_died", "level": "error", "pid": 71, "signal": "SIGSEGV"}
    assert event["timestamp"].endswith("Z")


def test_what_libraries_log_has_the_same_form() -> None:
    (event,) = events(printed(app('logging.getLogger("library").warning("lost %s of %d", "some", 3)')))
    assert facts(event) == {"event": "lost some of 3", "level": "warning"}


def test_a_warning_of_the_interpreter_has_the_same_form() -> None:
    (event,) = events(printed(app('warnings.simplefilter("default"); warnings.warn("old")')))
    assert event["level"] == "warning"
    assert "UserWarning: old" in event["event"]


@pytest.mark.parametrize(
    "statement",
    [
        'log.exception("request_failed")',
        'log.error("request_failed", exc_info=error)',
        'logging.getLogger("library").exception("request_failed")',
    ],
)
def test_an_exception_is_one_line_with_the_traceback_in_it(statement: str) -> None:
    (event,) = events(printed(app(FAILURE.format(statement=statement))))
    assert (event["event"], event["level"]) == ("request_failed", "error")
    assert event["exception"].startswith("Traceback (most recent call last):\n")
    assert event["exception"].endswith("ValueError: first line\nsecond line")


def test_a_line_break_from_a_caller_does_not_make_a_second_line() -> None:
    (event,) = events(printed(app(r'log.info("request", path="/flip\n{\"event\": \"forged\"}")')))
    assert event["path"] == '/flip\n{"event": "forged"}'


def test_a_fact_that_json_has_no_word_for_does_not_lose_the_line() -> None:
    (event,) = events(printed(app('log.info("blob_stored", path=Path("/blobs/1"), head=b"\\xff")')))
    assert "/blobs/1" in event["path"]


def test_what_is_less_severe_than_the_level_is_not_logged() -> None:
    statements = 'log.debug("detail"); logging.getLogger("library").debug("detail"); log.info("fact")'
    assert [event["event"] for event in events(printed(app(statements)))] == ["fact"]


def test_on_a_terminal_lines_are_for_people() -> None:
    text = shown(app('log.info("engine_died", pid=71)'))
    assert "engine_died" in text
    assert "\x1b[" in text
    assert "{" not in text


def test_pretty_lines_in_a_file_have_no_colours() -> None:
    text = printed(app('log.info("engine_died", pid=71)', log_format="pretty"))
    assert text.rstrip().endswith("pid=71")
    assert "\x1b[" not in text


def test_json_can_be_had_on_a_terminal() -> None:
    (event,) = events(shown(app('log.info("engine_died", pid=71)', log_format="json")))
    assert event["pid"] == 71


def test_on_a_terminal_an_exception_is_shown_with_its_traceback() -> None:
    text = shown(app(FAILURE.format(statement='log.exception("request_failed")')))
    assert "Traceback" in text
    assert "ValueError" in text


def values_of(sentence: str) -> list[int]:
    """Return what stands for the facts of a sentence."""
    return list(range(70, 70 + sentence.count("%s")))


@pytest.fixture(scope="module")
def gunicorn_s_events() -> dict[str, dict[str, Any]]:
    """The events that gunicorn's sentences become, in a process that says all of them."""
    statements = "".join(
        f"gunicorn.warning({sentence!r}, *{values_of(sentence)})\n" for sentence in sorted(_EVENTS)
    )
    return dict(zip(sorted(_EVENTS), events(printed(under_gunicorn(statements))), strict=True))


@pytest.mark.parametrize("sentence", sorted(_EVENTS))
def test_a_sentence_of_gunicorn_becomes_an_event_with_facts(
    gunicorn_s_events: dict[str, dict[str, Any]], sentence: str
) -> None:
    name, fact_names = _EVENTS[sentence]
    values = dict(zip(fact_names, values_of(sentence), strict=True))
    assert facts(gunicorn_s_events[sentence]) == {"event": name, "level": "warning", **values}


def test_a_sentence_that_says_again_what_an_event_said_is_left_out() -> None:
    statements = "".join(
        f"gunicorn.critical({sentence!r}, *[1] * {sentence.count('%s')})\n" for sentence in _REPETITIONS
    )
    assert printed(under_gunicorn(statements)) == ""


def test_any_other_sentence_of_gunicorn_is_an_event_as_it_stands() -> None:
    (event,) = events(printed(under_gunicorn('gunicorn.error("Retrying in %s second.", 1)')))
    assert facts(event) == {"event": "Retrying in 1 second.", "level": "error"}


def test_an_exception_that_gunicorn_logs_is_one_line_too() -> None:
    program = under_gunicorn(FAILURE.format(statement='gunicorn.exception("Exception in worker process")'))
    (event,) = events(printed(program))
    assert event["event"] == "Exception in worker process"
    assert event["exception"].endswith("second line")


def test_under_gunicorn_the_app_s_events_have_the_same_form() -> None:
    statements = (
        'logs.get_logger("app").info("worker_online", pid=70); gunicorn.info("Handling signal: %s", "hup")'
    )
    assert [facts(event) for event in events(printed(under_gunicorn(statements)))] == [
        {"event": "worker_online", "level": "info", "pid": 70},
        {"event": "signal_received", "level": "info", "signal": "hup"},
    ]


def test_on_a_terminal_gunicorn_s_events_are_for_people() -> None:
    text = shown(under_gunicorn('gunicorn.info("Booting worker with pid: %s", 71)'))
    assert "worker_booting" in text
    assert "\x1b[" in text


def test_gunicorn_s_own_log_level_holds_for_the_app_too() -> None:
    statements = (
        'logs.get_logger("app").info("fact"); gunicorn.info("fact"); logs.get_logger("app").error("trouble")'
    )
    program = under_gunicorn(statements, loglevel="warning")
    assert [event["event"] for event in events(printed(program))] == ["trouble"]


def test_everything_goes_to_gunicorn_s_error_log_when_that_is_a_file(tmp_path: Path) -> None:
    file = tmp_path / "errors.log"
    statements = 'gunicorn.info("Handling signal: %s", "hup"); logs.get_logger("app").info("worker_online")'
    assert shown(under_gunicorn(statements, errorlog=str(file))) == ""
    assert [event["event"] for event in events(file.read_text())] == ["signal_received", "worker_online"]


def test_a_reload_does_not_write_lines_twice() -> None:
    statements = 'gunicorn.setup(config); logs.get_logger("app").info("fact"); gunicorn.info("sentence")'
    assert [event["event"] for event in events(printed(under_gunicorn(statements)))] == ["fact", "sentence"]


def test_gunicorn_still_says_every_sentence_that_we_listen_for() -> None:
    said = {
        node.value
        for file in Path(gunicorn.__path__[0]).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    # It builds one of them from two: "... was sent %s!" and " Perhaps out of memory?".
    endings = {text for text in said if text.startswith(" ")}
    unsaid = {
        sentence
        for sentence in {*_EVENTS, *_REPETITIONS}
        if sentence not in said and not any(sentence.removesuffix(ending) in said for ending in endings)
    }
    assert unsaid == set()


def test_a_sentence_has_a_name_for_each_of_its_facts() -> None:
    assert {sentence: sentence.count("%s") for sentence in _EVENTS} == {
        sentence: len(names) for sentence, (_, names) in _EVENTS.items()
    }


STREAMS = """
import os, subprocess, sys
from server.logs import open_standard_streams
open_standard_streams()
sys.stdout.write("nowhere"); sys.stdout.flush(); sys.stderr.write("nowhere"); sys.stderr.flush()
with open(sys.argv[1], "w") as said:
    said.write(str([os.readlink(f"/proc/self/fd/{number}") for number in range(3)]))
    said.write(str(said.fileno()))
    said.flush()
    subprocess.run(["sh", "-c", "readlink /proc/$$/fd/2"], stdout=said)
"""


def test_standard_streams_that_are_closed_lead_nowhere_here_and_in_children(tmp_path: Path) -> None:
    program = [sys.executable, "-c", STREAMS, str(tmp_path / "said")]
    subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *program], check=True, timeout=60)
    assert (tmp_path / "said").read_text() == f"{['/dev/null'] * 3}3/dev/null\n"


def test_standard_streams_that_are_open_stay_as_they_are() -> None:
    said = printed(
        "import sys\nfrom server.logs import open_standard_streams\n"
        "open_standard_streams()\nsys.stderr.write('said')"
    )
    assert said == "said"
