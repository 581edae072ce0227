"""`python -m worker --queue jobs|inspections`: one worker process; `featherweight worker` and `serve` start both."""

from __future__ import annotations

import argparse
import os
import secrets
import socket
import sys
import warnings

from celery.exceptions import SecurityWarning

from app.logging import configure_logging
from app.queue import JOBS, QUEUES
from app.settings import load_settings
from worker.celery_app import make_application, run_worker
from worker.child import DEFAULT_ENTRY
from worker.children import CAN_FORK, clean_environment
from worker.launchers import LauncherKeeper
from worker.node import Node
from worker.reaper import Reaper, sweep_folders


def main() -> None:
    """Free what is known to be dead, start the launcher, consume."""
    parsed = _parser().parse_args()
    settings = load_settings()
    configure_logging(settings.log_format)
    if settings.broker_url is None:
        sys.exit("FEATHERWEIGHT_BROKER_URL is not set")
    name = parsed.node or f"{parsed.queue}-{secrets.token_hex(4)}@{socket.gethostname()}"
    node = Node.open(settings, name, parsed.queue, parsed.entry)
    reaper = Reaper(node)
    if parsed.alone or parsed.replaces:
        reaper.free(None if parsed.alone else parsed.replaces)
        sweep_folders(node)
    if node.queue == JOBS and CAN_FORK:
        environment = clean_environment(os.environ, settings.threads_per_job, str(settings.work_dir))
        node.launcher = LauncherKeeper(node.entry, environment)
        node.launcher.start()
    # Celery warns of root because of pickled messages; ours are JSON, and the engine's processes are what is dangerous.
    warnings.simplefilter("ignore", SecurityWarning)
    try:
        run_worker(make_application(node, reaper), node)
    finally:
        node.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m worker")
    parser.add_argument("--queue", choices=QUEUES, required=True)
    parser.add_argument("--node", help="a name that no other worker has")
    parser.add_argument(
        "--replaces", action="append", help="a worker that is known to be dead: its rows are free at once"
    )
    parser.add_argument(
        "--alone", action="store_true", help="no other worker of this queue is alive: all rows are free"
    )
    parser.add_argument("--entry", default=DEFAULT_ENTRY, help="the engine, as module:function")
    return parser


if __name__ == "__main__":
    main()
