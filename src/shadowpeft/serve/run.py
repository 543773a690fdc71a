"""The server's life: its address, its models, its loop, and its end."""

import asyncio
import logging
import os
import signal
import socket
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import uvicorn

from shadowpeft.errors import ConfigError
from shadowpeft.serve import page
from shadowpeft.serve.app import Gateway, Limits, Served
from shadowpeft.serve.backend import Backend
from shadowpeft.serve.roles import Roles
from shadowpeft.serve.settings import Serve
from shadowpeft.serve.upstream import Upstream

_KEYS = "SHADOWPEFT_API_KEYS"


def serve(settings: Serve) -> None:
    """Serve until a signal ends it.

    Raises:
        UserError: the address is taken, or something cannot be loaded or reached.
    """
    keys = keys_of(settings)
    # Before minutes of loading.
    taken = bound(settings.host, settings.port)
    try:
        found = built(settings, keys)
        if settings.log_requests:
            logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(message)s")
            logging.getLogger("shadowpeft.serve").setLevel(logging.INFO)
        asyncio.run(_run(found, taken, settings.grace))
    finally:
        taken.close()


class Built(NamedTuple):
    """A server that is not started yet.

    Attributes:
        gateway: its HTTP side.
        backends: what must be started and closed.
        roles: edge and cloud, if there are.
    """

    gateway: Gateway
    backends: list[Backend]
    roles: Roles | None

    async def start(self) -> None:
        """Start it.

        Raises:
            UserError: a server elsewhere that it needs cannot be reached.
        """
        for backend in self.backends:
            if not isinstance(backend, Upstream):
                await backend.start()
        if self.roles is not None:
            await self.roles.check()

    async def close(self) -> None:
        """End all work."""
        for backend in self.backends:
            await backend.close()


def built(settings: Serve, keys: Sequence[str] = ()) -> Built:
    """Load what the settings name; return what serves it, not started yet.

    Raises:
        UserError: something cannot be loaded.
    """
    served: dict[str, Served] = {}
    gateway = Gateway(served, limits_of(settings), keys, routes=page.routes())
    backends: list[Backend] = []
    if settings.model is not None:
        from shadowpeft.serve.loading import models_of
        from shadowpeft.serve.local import LocalBackend

        local = LocalBackend(models_of(settings), settings.batch, settings.max_tokens)
        backends.append(local)
        served.update({name: Served(local, name) for name in local.models})
    roles = None
    if settings.edge is not None:
        roles = Roles(settings, dict(served), gateway.metrics)
        backends += roles.backends()
        gateway.served = {**roles.served(), **served}
        gateway.about, gateway.is_well = roles.about, roles.is_well
    return Built(gateway, backends, roles)


def limits_of(settings: Serve) -> Limits:
    """Return what the server takes on."""
    return Limits(settings.concurrency, settings.queue, 1000 * settings.body_kb, settings.timeout)


def keys_of(settings: Serve) -> list[str]:
    """Return the keys of which callers must show one.

    Raises:
        ConfigError: the file is missing, or holds none.
    """
    keys = [key.strip() for key in os.environ.get(_KEYS, "").split(",") if key.strip()]
    if settings.api_keys is not None:
        try:
            lines = Path(settings.api_keys).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the file of keys {settings.api_keys} cannot be read: {error}") from error
        found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not found:
            raise ConfigError(f"the file of keys {settings.api_keys} holds none; write one a line")
        keys += found
    if not keys and not _is_loopback(settings.host):
        warnings.warn(
            f"{settings.host} can be reached from other machines, and anyone there may ask; give --api-keys",
            stacklevel=2,
        )
    return keys


def bound(host: str, port: int) -> socket.socket:
    """Return a socket that has the address.

    Raises:
        ConfigError: it is taken, or no address of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        taken = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"cannot listen at {host}: {error.strerror or error}") from error
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
        # Now, or another program could take the address while the models are loaded.
        taken.listen(2048)
    except OSError as error:
        taken.close()
        remedy = "; give another with --port, or 0 for a free one" if error.errno != 99 else ""
        raise ConfigError(f"cannot listen at {host}:{port}: {error.strerror or error}{remedy}") from error
    return taken


def _is_loopback(host: str) -> bool:
    return host == "localhost" or host == "::1" or host.startswith("127.")


class _Server(uvicorn.Server):
    """A server that ends by itself after a signal, with the running requests answered."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway) -> None:
        super().__init__(config)
        self._gateway = gateway

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Let nobody in any more; at a second interrupt do not wait for those who are in."""
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = self._gateway.gate.closing = True


async def _run(found: Built, taken: socket.socket, grace: float) -> None:
    config = uvicorn.Config(
        found.gateway.app(),
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_keep_alive=60,
        timeout_graceful_shutdown=int(grace),
    )
    try:
        await found.start()
        host, port = taken.getsockname()[:2]
        where = f"[{host}]" if ":" in host else host
        print(f"http://{where}:{port} serves {', '.join(found.gateway.served)}", file=sys.stderr, flush=True)
        await _Server(config, found.gateway).serve(sockets=[taken])
    finally:
        await found.close()
