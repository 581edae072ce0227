"""The one Celery task: a message wakes a worker, and the row says what there is to do."""

from __future__ import annotations

import logging

from celery import Celery

from app.db.engine import is_unavailable
from app.queue import TASK
from worker.node import Node
from worker.runner import run_item

_log = logging.getLogger(__name__)


def register(application: Celery, node: Node) -> None:
    """Give the application its task; it runs in a thread of this process's pool."""

    @application.task(name=TASK, ignore_result=True)
    def work(item_id: str) -> None:
        try:
            run_item(node, item_id)
        except KeyError:
            _log.warning("a message about %r, which is none of ours", item_id)
        except Exception as error:
            if not is_unavailable(error):
                raise
            _log.warning("%s waits for the database; the reaper sends it again", item_id)
