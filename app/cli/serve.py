"""`featherweight serve`: broker, API and workers in one command, on the embedded default or on what the settings name."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from app.cli import broker
from app.cli.errors import StartError
from app.cli.keeper import Keeper
from app.cli.listening import listen, url_of
from app.cli.supervision import Service, Supervisor
from app.queue import QUEUES
from app.settings import Settings

PYTHON = (sys.executable, "-P", "-m")
_SECONDS_UNTIL_A_HINT = 60.0


def serve(settings: Settings, worker_arguments: Sequence[str] = ()) -> None:
    """Run everything until SIGINT or SIGTERM. `worker_arguments` are handed to the workers. Raises `StartError`."""
    lock = lock_data_dir(settings.data_dir)
    listener = listen(settings.host, settings.port)
    keeper = Keeper.start(inherited=(lock.fileno(), listener.fileno()))
    with Supervisor(keeper) as supervisor, lock, listener:
        environment = _environment(settings)
        if settings.broker_url is None:
            environment["FEATHERWEIGHT_BROKER_URL"] = _start_broker(supervisor, keeper, dict(environment))
        _migrate(environment)
        api = (*PYTHON, "app.cli.main", "api", "--fd", str(listener.fileno()))
        supervisor.add(Service("api", lambda _: api, environment, (listener.fileno(),)))
        # Where database and broker are ours alone, nobody else can hold a lease: what a killed `serve` left is free.
        is_alone = settings.broker_url is None and settings.database_url is None
        add_workers(supervisor, environment, worker_arguments, is_alone=is_alone)
        _announce(supervisor, url_of(listener), settings)
        supervisor.run_for(None)
    keeper.close()


def add_workers(
    supervisor: Supervisor, environment: Mapping[str, str], arguments: Sequence[str] = (), *, is_alone: bool = False
) -> None:
    """One worker process for jobs and one for inspections, so that an upload is inspected while a long job runs."""
    for queue in QUEUES:
        names: list[str] = []

        def command(_: int, queue: str = queue, names: list[str] = names) -> Sequence[str]:
            # A worker that we saw die holds no lease: the next one frees its rows without waiting for the reaper.
            replaced = [word for name in names[-8:] for word in ("--replaces", name)]
            alone = ["--alone"] if is_alone and not names else []
            names.append(f"{queue}-{secrets.token_hex(4)}@{socket.gethostname()}")
            return (*PYTHON, "worker", "--queue", queue, "--node", names[-1], *replaced, *alone, *arguments)

        supervisor.add(Service(f"worker ({queue})", command, environment))


def lock_data_dir(data_dir: Path) -> IO[str]:
    """Make the data folder and take it for this process alone; raises `StartError` where another `serve` has it."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = (data_dir / "serve.lock").open("a+")
    except OSError as error:
        raise StartError(f"the data folder {data_dir} cannot be used: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        pid = lock.read(32).strip() or "unknown"
        lock.close()
        raise StartError(
            f"another `featherweight serve` (process {pid}) uses the data folder {data_dir.resolve()}; "
            "stop it, or give this one a folder of its own with --data-dir or FEATHERWEIGHT_DATA_DIR"
        ) from None
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock


def _environment(settings: Settings) -> dict[str, str]:
    """What the processes are told; paths absolute, whatever folder they run in."""
    told = {"DATA_DIR": str(settings.data_dir.resolve()), "HOST": settings.host, "PORT": str(settings.port)}
    return dict(os.environ) | {f"FEATHERWEIGHT_{name}": value for name, value in told.items()}


def _start_broker(supervisor: Supervisor, keeper: Keeper, environment: Mapping[str, str]) -> str:
    server = broker.find_server()
    folder = broker.make_folder()
    keeper.add_folder(folder)
    stale = broker.socket_of(folder)
    command = broker.command(server, folder)
    clear = lambda: stale.unlink(missing_ok=True)  # noqa: E731
    supervisor.add(Service("broker", lambda _: command, environment, before_start=clear))
    end = time.monotonic() + 10
    while not broker.is_listening(folder):
        if time.monotonic() > end:
            raise StartError(f"the broker {server} does not start; FEATHERWEIGHT_BROKER_URL names another one")
        supervisor.run_for(0.02)
    return broker.url_of(folder)


def _migrate(environment: Mapping[str, str]) -> None:
    done = subprocess.run((*PYTHON, "app.cli.main", "migrate"), env=dict(environment), check=False)
    if done.returncode != 0:
        raise StartError("the database could not be brought to this version; see above")


def _announce(supervisor: Supervisor, url: str, settings: Settings) -> None:
    began, has_hinted = time.monotonic(), False
    while not supervisor.is_stopping:
        missing = _not_ready(url)
        if not missing:
            print(f"featherweight is ready: {url} (data in {settings.data_dir}; Ctrl-C stops it)", flush=True)
            return
        if time.monotonic() - began > _SECONDS_UNTIL_A_HINT and not has_hinted:
            print(f"featherweight is still not ready; {missing}", file=sys.stderr, flush=True)
            has_hinted = True
        supervisor.run_for(0.2)


def _not_ready(url: str) -> str:
    """Empty when `/readyz` says 200, else what it says."""
    with suppress(OSError, http.client.HTTPException, ValueError):
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=3)
        try:
            connection.request("GET", "/readyz")
            answer = connection.getresponse()
            body: Any = json.loads(answer.read())
            return "" if answer.status == 200 else f"/readyz: {body}"
        finally:
            connection.close()
    return "the API does not answer yet"
