"""Logs: one formatter for the app, its server and the libraries; readable on a terminal, JSON otherwise.

An event is a static name with fields: `engine_died pid=71 signal=SIGSEGV`.
"""

import logging
import os
import sys
from typing import Literal

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

LogFormat = Literal["auto", "json", "pretty"]


def _drop_arguments(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Leave out the arguments of a library's line: they are part of its text."""
    event.pop("positional_args", None)
    return event


def _leave_out_nothings(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """For people; a machine wants every field in every line."""
    return {name: value for name, value in event.items() if value is not None}


_SHARED: list[Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


def formatter(log_format: LogFormat, *foreign: Processor, is_terminal: bool) -> logging.Formatter:
    """Build the one formatter.

    Args:
        log_format: `pretty` for people, `json` for machines, `auto` for the one that suits.
        foreign: applied to lines that do not come from structlog.
        is_terminal: whether a person will see the lines as they come.
    """
    is_pretty = is_terminal if log_format == "auto" else log_format == "pretty"
    renderer: list[Processor] = (
        [_leave_out_nothings, structlog.dev.ConsoleRenderer(colors=is_terminal, sort_keys=False)]
        if is_pretty
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*_SHARED, *foreign, _drop_arguments],
        pass_foreign_args=True,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
    )


def open_standard_streams() -> None:
    """Open `/dev/null` in place of each standard stream that is closed; to be called before any other file.

    Otherwise the next file or socket that the process opens takes its number, and its children take that file
    for their standard stream.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # noqa: FBT003 the lowest free number
            setattr(sys, name, open(number, "r" if name == "stdin" else "w", closefd=False))  # noqa: SIM115


def configure(log_format: LogFormat = "auto", level: int = logging.INFO) -> None:
    """Send everything that this process logs to standard error, in one form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(log_format, is_terminal=is_terminal()))
    take_over([handler], level)


def is_terminal() -> bool:
    """Whether a person sees what is written to standard error."""
    return sys.stderr is not None and sys.stderr.isatty()  # a daemon may have none


def take_over(handlers: list[logging.Handler], level: int) -> None:
    """Send everything that this process logs to these handlers, the libraries' lines too.

    A line that cannot be written, as the disk is full or the pipe closed, is lost, and nothing else is.
    """
    logging.raiseExceptions = False  # or a handler prints a traceback for each such line
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
