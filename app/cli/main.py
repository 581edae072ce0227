"""`featherweight serve | api | worker | migrate`. Flags win over the environment, which wins over `.env`."""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence

from pydantic import ValidationError

from app.cli.errors import StartError
from app.logging import configure_logging
from app.settings import Settings, load_settings


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script. Exit status: 0, or 1 with one line that says why it could not start."""
    parsed = _parser().parse_args(arguments)
    for name in ("host", "port", "data_dir"):
        if (value := getattr(parsed, name)) is not None:
            os.environ[f"FEATHERWEIGHT_{name.upper()}"] = value
    try:
        settings = _settings()
        configure_logging(settings.log_format)
        command: Callable[[Settings, argparse.Namespace], None] = parsed.run
        command(settings, parsed)
    except StartError as error:
        sys.exit(f"featherweight: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="featherweight", description="Model compression as a job API.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--host", help="address to listen on (FEATHERWEIGHT_HOST, 127.0.0.1)")
    shared.add_argument("--port", help="port to listen on; 0 takes a free one (FEATHERWEIGHT_PORT, 8000)")
    shared.add_argument("--data-dir", help="folder of everything that is kept (FEATHERWEIGHT_DATA_DIR, ./data)")
    for name, run, text in (
        ("serve", _serve, "API and worker in one command; without a database or broker of yours, with its own"),
        ("api", _api, "the HTTP service alone"),
        ("worker", _worker, "the worker alone"),
        ("migrate", _migrate, "bring the database to this version"),
    ):
        command = commands.add_parser(name, parents=[shared], help=text, description=text)
        command.set_defaults(run=run)
        if name == "api":
            command.add_argument("--fd", type=int, help=argparse.SUPPRESS)
    return parser


def _settings() -> Settings:
    try:
        return load_settings()
    except ValidationError as error:
        reasons = []
        for item in error.errors():
            name = "_".join(str(part) for part in item["loc"]).upper()
            reasons.append(
                f"FEATHERWEIGHT_{name}: {item['msg']}" if name else item["msg"].removeprefix("Value error, ")
            )
        raise StartError("; ".join(reasons)) from None


def _serve(settings: Settings, _: argparse.Namespace) -> None:
    from app.cli.serve import serve

    serve(settings)


def _api(settings: Settings, parsed: argparse.Namespace) -> None:
    import uvicorn

    from app.api.protocol import BoundedHeadProtocol
    from app.cli.listening import listen
    from app.main import create_app

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            # Who waits for a job is let go first, or the end of the server would wait for him.
            application.state.services.watcher.stop()
            await super().shutdown(sockets)

    _ask_for_a_broker(settings)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    listener = listen(settings.host, settings.port) if parsed.fd is None else socket.socket(fileno=parsed.fd)
    application = create_app(settings)
    config = uvicorn.Config(
        application,
        http=BoundedHeadProtocol,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=3,
    )
    Server(config).run(sockets=[listener])


def _worker(settings: Settings, _: argparse.Namespace) -> None:
    from app.cli.keeper import Keeper
    from app.cli.serve import add_workers
    from app.cli.supervision import Supervisor

    _ask_for_a_broker(settings)
    keeper = Keeper.start()
    with Supervisor(keeper) as supervisor:
        add_workers(supervisor, os.environ)
        supervisor.run_for(None)
    keeper.close()


def _migrate(settings: Settings, _: argparse.Namespace) -> None:
    from sqlalchemy.exc import SQLAlchemyError

    from app.db.migrate import upgrade

    try:
        upgrade(settings.resolved_database_url)
    except (SQLAlchemyError, ValueError) as error:
        raise StartError(f"the database cannot be used: {getattr(error, 'orig', None) or error}") from None


def _ask_for_a_broker(settings: Settings) -> None:
    if settings.broker_url is None:
        raise StartError(
            "FEATHERWEIGHT_BROKER_URL is not set, and only `featherweight serve` brings a broker of its own; "
            "use that, or set it (for example redis://127.0.0.1:6379/0)"
        )


if __name__ == "__main__":
    main()
