"""Logs: one formatter for the app, gunicorn and the libraries; readable on a terminal, JSON otherwise.

An event is a static name with facts beside it: `engine_died pid=71 signal=SIGSEGV`.
gunicorn's own sentences about the life of its workers become such events too.
"""

import logging
import sys
from typing import Literal, TextIO

import structlog
from gunicorn.config import Config
from gunicorn.glogging import Logger
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

LogFormat = Literal["auto", "json", "pretty"]

#: gunicorn's sentence, the event it tells of, and the names of what it puts into the sentence.
#: A live test kills workers and so notices when gunicorn words one of them anew.
_GUNICORN_EVENTS: dict[str, tuple[str, tuple[str, ...]]] = {
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
    "Parent changed, shutting down: %s": ("arbiter_gone", ("pid",)),
}

#: Sentences that say again what another event has said.
_REPETITIONS = {
    "Using worker: %s",
    "ASGI server listening on %s",
    "ASGI lifespan startup complete",
    "Worker shutting down...",
}


def _name_gunicorn_event(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Turn a sentence of gunicorn's into an event with facts."""
    values = event.pop("positional_args", ())
    if known := _GUNICORN_EVENTS.get(event["_record"].msg):
        event["event"], names = known
        # The arbiter's end is told with the worker itself, which says nothing to anybody.
        facts = (getattr(value, "pid", value) for value in values)
        event.update(zip(names, facts, strict=False))
    return event


def _leave_out_nothings(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """For people; a machine wants every field in every line."""
    return {name: value for name, value in event.items() if value is not None}


def _is_news(record: logging.LogRecord) -> bool:
    return record.msg not in _REPETITIONS


_SHARED: list[Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


def formatter(log_format: LogFormat, *, is_terminal: bool) -> logging.Formatter:
    """Build the one formatter.

    Args:
        log_format: `pretty` for people, `json` for machines, `auto` for whichever suits.
        is_terminal: whether a person will see the lines as they come.
    """
    is_pretty = is_terminal if log_format == "auto" else log_format == "pretty"
    renderer: list[Processor] = (
        [_leave_out_nothings, structlog.dev.ConsoleRenderer(colors=is_terminal, sort_keys=False)]
        if is_pretty
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*_SHARED, _name_gunicorn_event],
        pass_foreign_args=True,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
    )


def configure(log_format: LogFormat = "auto", level: int = logging.INFO) -> None:
    """Send everything that this process logs to standard error, in one form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(log_format, is_terminal=_is_terminal()))
    _take_over([handler], level)


def gunicorn_logger(log_format: LogFormat) -> type[Logger]:
    """Return a class for gunicorn's `logger_class` that formats as all else is formatted.

    gunicorn's own settings (`loglevel`, `errorlog`, `syslog`) keep their meaning; the app's lines go
    wherever gunicorn's error log goes.
    """

    class OneFormatLogger(Logger):  # type: ignore[misc]  # gunicorn has no types
        def setup(self, cfg: Config) -> None:
            super().setup(cfg)
            self.error_log.addFilter(_is_news)
            _take_over(self.error_log.handlers, self.loglevel)

        def _set_handler(
            self,
            log: logging.Logger,
            output: str | None,
            fmt: logging.Formatter,
            stream: TextIO | None = None,
        ) -> None:
            if log is self.error_log:
                fmt = formatter(log_format, is_terminal=output == "-" and _is_terminal())
            super()._set_handler(log, output, fmt, stream)

    return OneFormatLogger


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()  # a daemon may have none


def _take_over(handlers: list[logging.Handler], level: int) -> None:
    root = logging.getLogger()
    root.handlers = list(handlers)
    root.setLevel(level)
    logging.captureWarnings(capture=True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_SHARED,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def get_logger(name: str) -> FilteringBoundLogger:
    """Return the logger of a module: `log.info("engine_online", pid=71)`."""
    logger: FilteringBoundLogger = structlog.get_logger(name)
    return logger
