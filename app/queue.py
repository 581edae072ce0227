"""The broker, through Celery: one message wakes one worker, the row is the truth.

A message holds nothing but an id. A lost one costs a delay (the reaper sends it again), a doubled one is a no-op (the
claim finds no row). So nothing here raises: what could not be sent is sent later.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from typing import Any

from celery import Celery
from kombu.exceptions import KombuError
from kombu.exceptions import OperationalError as BrokerError

from app.settings import Settings

TASK = "featherweight.work"
JOBS, INSPECTIONS = "jobs", "inspections"
QUEUES = (JOBS, INSPECTIONS)
LONGEST_JOB_SECONDS = 43_200

_log = logging.getLogger(__name__)

# Redis gives an unacknowledged message to someone else after `visibility_timeout`, even while the first run is alive:
# it has to be longer than the longest job. The short retry is what bounds a publish to 0.3 s when the broker is down.
_TRANSPORT_OPTIONS: dict[str, dict[str, Any]] = {
    "redis": {
        "visibility_timeout": LONGEST_JOB_SECONDS,
        "socket_timeout": 5,
        "socket_connect_timeout": 2,
        "socket_keepalive": True,
        "health_check_interval": 10,
    },
}
_PUBLISHING = {"max_retries": 1, "interval_start": 0, "interval_step": 0.1, "socket_timeout": 2}


def make_celery(settings: Settings, *, publishes_only: bool = False) -> Celery:
    """The Celery application of this process; the settings are those measured for Redis, and hold for RabbitMQ."""
    url = settings.broker_url or "redis://127.0.0.1:0/0"
    transport = "redis" if url.startswith(("redis", "valkey", "sentinel")) else url.split(":", 1)[0]
    application = Celery("featherweight", broker=_kombu_url(url), set_as_current=False)
    application.conf.update(
        task_acks_late=True,
        worker_prefetch_multiplier=1,
        # True ran the task a second time beside a living child: the lease and the reaper do this job.
        task_reject_on_worker_lost=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        task_ignore_result=True,
        result_backend=None,
        task_serializer="json",
        accept_content=["json"],
        task_create_missing_queues=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options=_TRANSPORT_OPTIONS.get(transport, {}) | (_PUBLISHING if publishes_only else {}),
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
        enable_utc=True,
    )
    return application


def queue_of(item_id: str) -> str:
    """`jobs` for a job, `inspections` for an uploaded model or data set."""
    return JOBS if item_id.startswith("job_") else INSPECTIONS


class Publisher:
    """Sends ids to the workers and asks the broker how it is. Safe in several threads; no method raises."""

    def __init__(self, settings: Settings) -> None:
        self._has_broker = settings.broker_url is not None
        self._celery = make_celery(settings, publishes_only=True)
        self._state = threading.Lock()
        self._down_until = 0.0

    def send(self, item_id: str) -> bool:
        """Wake a worker for `item_id`. False when the broker did not take it: at once when it is down, 2 s when frozen."""
        if not self._has_broker or time.monotonic() < self._down_until:
            return False
        # The first try may meet a pooled connection that died with an earlier broker; the second opens a new one.
        # A broker that let the first one wait is frozen, not restarted.
        began = time.monotonic()
        for is_second in (False, True):
            try:
                self._celery.send_task(TASK, args=[item_id], queue=queue_of(item_id), retry=False, ignore_result=True)
                return True
            except (BrokerError, KombuError, OSError) as error:
                if is_second or time.monotonic() - began > 0.3:
                    _log.warning("the broker did not take %s; the reaper sends it later: %s", item_id, error)
                    self._rest()
                    break
        return False

    def _rest(self) -> None:
        # A frozen broker costs its socket timeout at each try: one caller in a second pays it, not every one.
        with self._state:
            self._down_until = time.monotonic() + 1.0

    def ping(self) -> bool:
        """Whether the broker answers, within about 2 s."""
        if not self._has_broker:
            return False
        try:
            with self._celery.connection_for_write() as connection:
                connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0.1, timeout=2)
                connection.default_channel.queue_declare(JOBS, durable=True, auto_delete=False)
            return True
        except Exception as error:  # a probe reports whatever is wrong
            _log.info("the broker does not answer: %s", error)
            return False

    def num_waiting(self, queue: str) -> int | None:
        """Messages in `queue` that no worker has taken; None when the broker does not say."""
        if not self._has_broker:
            return None
        try:
            with self._celery.connection_for_write() as connection:
                connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0.1, timeout=2)
                # Not passive: Redis knows no empty queue, and would call it missing.
                return int(
                    connection.default_channel.queue_declare(queue, durable=True, auto_delete=False).message_count
                )
        except Exception as error:
            _log.info("the broker does not tell the length of %s: %s", queue, error)
            return None

    def live_workers(self, seconds: float = 1.0) -> set[str]:
        """The queues (`jobs`, `inspections`) that a worker answers for; returns as soon as both do."""
        if not self._has_broker:
            return set()
        found: set[str] = set()
        with suppress(Exception):
            # Two answers are enough where there is one worker of each kind; with more of one kind, ask for all.
            for limit in (len(QUEUES), None):
                replies = self._celery.control.broadcast("ping", reply=True, timeout=seconds, limit=limit) or []
                found |= {node.split("-", 1)[0].split("@", 1)[0] for reply in replies for node in reply}
                if found >= set(QUEUES) or len(replies) < len(QUEUES):
                    break
        return found & set(QUEUES)


def _kombu_url(url: str) -> str:
    """`unix:///path` as redis-py says it, and `valkey://`, in kombu's words."""
    for ours, theirs in (("unix://", "redis+socket://"), ("valkeys://", "rediss://"), ("valkey://", "redis://")):
        if url.startswith(ours):
            return theirs + url.removeprefix(ours)
    return url
