"""gunicorn's logger: its sentences become events of the one log, in the one form."""

import logging
from typing import TextIO

from gunicorn.config import Config
from gunicorn.glogging import Logger
from structlog.typing import EventDict, WrappedLogger

from server import logs

#: gunicorn's sentence, the event it tells of, and the names of the values in the sentence.
#: A live test kills workers and so notices when gunicorn rewords one of them.
_EVENTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "Starting gunicorn %s": ("arbiter_starting", ("gunicorn",)),
    "Listening at: %s (%s)": ("arbiter_listening", ("address", "pid")),
    "Booting worker with pid: %s": ("worker_booting", ("pid",)),
    "Worker (pid:%s) was sent %s!": ("worker_died", ("pid", "signal")),
    "Worker (pid:%s) was sent %s! Perhaps out of memory?": ("worker_died", ("pid", "signal")),
    "Worker (pid:%s) exited with code %s.": ("worker_died", ("pid", "exit_code")),
    "WORKER TIMEOUT (pid:%s)": ("worker_timed_out", ("pid",)),
    "Worker exiting (pid: %s)": ("worker_exiting", ("pid",)),
    "Handling signal: %s": ("signal_received", ("signal",)),
    "Shutting down: %s": ("arbiter_stopped", ("name",)),
    "Hang up: %s": ("arbiter_reloading", ("name",)),
    "Master has been promoted.": ("arbiter_promoted", ()),
    "ASGI application returned without completing the response; closing the connection": (
        "response_cut_short",
        (),
    ),
    "Parent changed, shutting down: %s": ("arbiter_gone", ("pid",)),
}

#: Sentences that repeat what another event has said.
_REPETITIONS = {
    "Using worker: %s",
    "ASGI server listening on %s",
    "ASGI lifespan startup complete",
    "Worker shutting down...",
}


def name_event(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Turn a sentence of gunicorn's into an event with fields (a structlog processor)."""
    values = event.get("positional_args", ())
    if known := _EVENTS.get(event["_record"].msg):
        event["event"], names = known
        # gunicorn tells of the arbiter's end with the worker object, whose text says little.
        fields = (getattr(value, "pid", value) for value in values)
        event.update(zip(names, fields, strict=False))
    return event


def gunicorn_logger(log_format: logs.LogFormat) -> type[Logger]:
    """Return a class for gunicorn's `logger_class` that writes the one form.

    gunicorn's own settings (`loglevel`, `errorlog`, `syslog`) keep their meaning; the app's lines go where
    gunicorn's error log goes.
    """

    class OneFormatLogger(Logger):  # type: ignore[misc]  # gunicorn has no types
        def setup(self, cfg: Config) -> None:
            super().setup(cfg)
            self.error_log.addFilter(_is_news)
            logs.take_over(self.error_log.handlers, self.loglevel)

        def _set_handler(
            self,
            log: logging.Logger,
            output: str | None,
            fmt: logging.Formatter,
            stream: TextIO | None = None,
        ) -> None:
            if log is self.error_log:
                is_terminal = output == "-" and logs.is_terminal()
                fmt = logs.formatter(log_format, name_event, is_terminal=is_terminal)
            super()._set_handler(log, output, fmt, stream)

    return OneFormatLogger


def _is_news(record: logging.LogRecord) -> bool:
    return record.msg not in _REPETITIONS
