"""Runs the HTTP API in this process until a signal stops it."""

from __future__ import annotations

import dataclasses
import errno
import os
import socket
import threading
from collections.abc import Callable

from caption_jax.errors import ConfigError, UserError
from caption_jax.runtime.signals import SignalHandling, handled_signals
from caption_jax.serving.caption_service import READY, CaptionService
from input_pipeline.errors import MissingFileError
from input_pipeline.extras import optional_packages

with optional_packages("serving"):
    import uvicorn
    from starlette.applications import Starlette

_BIND_ERRORS = (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES)
_POLL_SECONDS = 0.1
_MIN_TOKEN_CHARACTERS = 16


class AddressError(UserError, OSError):
    """The server cannot listen on its address."""


@dataclasses.dataclass(frozen=True)
class Address:
    """The address of a server; port 0 chooses a free one."""

    host: str = "127.0.0.1"
    port: int = 8000

    def open_socket(self) -> socket.socket:
        """Returns a socket that listens on the address.

        Raises:
            AddressError: the address is in use, or not one of this host.
        """
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        try:
            return socket.create_server((self.host, self.port), family=family)
        except (OSError, OverflowError) as error:
            reason = os.strerror(error.errno) if getattr(error, "errno", 0) in _BIND_ERRORS else str(error)
            raise AddressError(f"cannot listen on {self.host}:{self.port} ({reason}): set --host and --port") from error


def read_token(path: str) -> str:
    """Returns the bearer token in a file.

    Raises:
        MissingFileError: the file does not exist.
        ConfigError: it does not contain a token of sufficient length.
    """
    try:
        with open(path, encoding="utf-8") as file:
            token = file.read(10_000).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise MissingFileError(f"--token_file={path}: cannot be read ({error})") from error
    if len(token) < _MIN_TOKEN_CHARACTERS or len(token.split()) != 1:
        raise ConfigError(
            f"--token_file={path}: the file must contain one word of at least {_MIN_TOKEN_CHARACTERS} characters"
        )
    return token


def run_server(app: Starlette, address: Address, announce: Callable[[str], None]) -> None:
    """Serves an application until a signal stops it or its programs cannot be compiled.

    The first signal refuses new connections and finishes accepted requests; a second one ends the process at once.

    Args:
        app: the application of `make_app`.
        address: the address to listen on.
        announce: is called with a message when connections are accepted, and when programs are compiled.

    Raises:
        AddressError: the address cannot be used.
        Exception: the error of the compilation.
    """
    service: CaptionService = app.state.service
    with address.open_socket() as listener, handled_signals() as signals:
        host, port = listener.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        announce(f"listening on {url}, compiling programs; {url}/readyz is 200 when they are ready")
        timeout = int(service.settings.timeout) + 1
        config = uvicorn.Config(
            app, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=timeout
        )
        server = uvicorn.Server(config)
        # Outside the main thread, uvicorn leaves the handling of signals to this process.
        thread = threading.Thread(target=server.run, args=([listener],), name="HTTP server", daemon=True)
        signals.defer(action="finishing accepted requests")
        thread.start()
        _wait(server, thread, service, signals, lambda: announce(f"ready: {url}"))
        signals.stop_deferring()
    if service.error is not None:
        raise service.error


def _wait(
    server: uvicorn.Server,
    thread: threading.Thread,
    service: CaptionService,
    signals: SignalHandling,
    announce_ready: Callable[[], None],
) -> None:
    """Waits until the server has stopped, and asks it to stop after a signal or a failure."""
    was_ready = False
    while thread.is_alive():
        thread.join(_POLL_SECONDS)
        if service.state == READY and not was_ready:
            was_ready = True
            announce_ready()
        if signals.received is not None or service.error is not None:
            server.should_exit = True
