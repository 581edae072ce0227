"""The Celery worker of one queue: a pool of threads, each of which watches one engine process."""

from __future__ import annotations

import logging
import warnings
from typing import Any

from celery import Celery
from celery.exceptions import CPendingDeprecationWarning
from celery.signals import setup_logging, worker_ready, worker_shutting_down

from app.queue import make_celery
from worker.node import Node
from worker.reaper import Reaper
from worker.tasks.work import register


def make_application(node: Node, reaper: Reaper) -> Celery:
    """The application with its task; the reaper starts when the worker is ready, attempts hand over when it stops."""
    application = make_celery(node.settings)
    register(application, node)

    def on_ready(**_: Any) -> None:
        # Celery announces another default for a setting that `make_celery` gives explicitly.
        warnings.simplefilter("ignore", CPendingDeprecationWarning)
        reaper.start()

    def on_shutting_down(**_: Any) -> None:
        # Within one tick each attempt kills its child and gives its row back; SIGTERM then waits for the threads.
        node.stopping.set()
        reaper.stop()

    def keep_logging(**_: Any) -> None:
        """Celery configures logging unless somebody listens here; ours is configured already."""
        logging.getLogger("celery").setLevel(logging.WARNING)

    setup_logging.connect(keep_logging, weak=False)
    worker_ready.connect(on_ready, weak=False)
    worker_shutting_down.connect(on_shutting_down, weak=False)
    return application


def run_worker(application: Celery, node: Node) -> None:
    """Consume until SIGTERM. Gossip, mingling and event heartbeats are off: they only cost an idle worker its rest."""
    worker = application.Worker(
        hostname=node.name,
        queues=[node.queue],
        pool="threads",
        concurrency=node.num_slots,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
    )
    worker.start()
