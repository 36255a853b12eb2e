"""Logs as one JSON object a line, each with the job that it is about."""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime

from finetune_api.text import printable, printable_lines

_job: ContextVar[str] = ContextVar("job", default="")


@contextmanager
def about(namespace: str, name: str) -> Iterator[None]:
    """Within it, every record carries `"job": "namespace/name"`."""
    token = _job.set(f"{namespace}/{name}")
    try:
        yield
    finally:
        _job.reset(token)


class JsonLines(logging.Formatter):
    """Formats a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": printable_lines(record.getMessage()),  # JSON leaves C1, bidi and other controls as they are
        }
        if job := _job.get():
            line["job"] = printable(job)
        if record.exc_info:
            line["exception"] = printable_lines(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False)


def configure(level: str) -> None:
    """Send all logs to stderr as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # kopf says each event of each object at INFO; what matters of it is WARNING and above.
    for noisy in ("kopf", "aiohttp.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
