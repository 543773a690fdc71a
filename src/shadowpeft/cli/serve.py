"""`shadowpeft serve`."""

from shadowpeft.cli._libraries import require
from shadowpeft.serve.settings import Serve

NEEDS = ("starlette", "uvicorn", "httpx2", "prometheus_client")


def run(settings: Serve) -> None:
    """Answer requests in OpenAI's protocol with a base, its adapters and their shadows alone, or with an
    edge that defers to a cloud.

    Args:
        settings: what is served.
    """
    require("a server", NEEDS, extra="serve")
    from shadowpeft.serve.run import serve

    serve(settings)
