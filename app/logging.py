"""Structured logs for every process: one line per event, as text for people or as JSON for machines."""

from __future__ import annotations

import logging
import sys
from typing import Any, Literal

import structlog
from structlog.typing import Processor

_QUIET = ("alembic", "aiosqlite", "kombu", "amqp", "asyncio", "python_multipart")


def configure_logging(log_format: Literal["text", "json"] = "text", *, level: int = logging.INFO) -> None:
    """Send structlog and the standard library's logging through one renderer to stderr.

    What is bound to the context (`request_id`, `job_id`) is on every line. Values are rendered escaped, so that nothing a
    client sends can forge a line.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    rendering: list[Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if log_format == "json"
        else [
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
        ]
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.PositionalArgumentsFormatter(), _escape_event],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    logging.basicConfig(handlers=[handler], level=level, force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


def get_logger(name: str) -> Any:
    """A structlog logger; call it with an event name and key-value pairs."""
    return structlog.stdlib.get_logger(name)


def _escape_event(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    message = str(event.get("event", ""))
    event["event"] = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)
    return event
