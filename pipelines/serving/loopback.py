"""Keeps the internal port of a replica on loopback.

Ray Serve opens a port in every replica for calls between deployments, at `[::]` and without a token, and unpickles what
arrives there. Nothing calls it unless `RAY_SERVE_USE_GRPC_BY_DEFAULT` is set: deployments call each other as actors do.
"""

from typing import Any

from ray._common.tls_utils import add_port_to_grpc_server
from ray.serve._private import replica
from ray.serve._private.constants import RAY_SERVE_USE_GRPC_BY_DEFAULT


def listen_on_loopback() -> None:
    """For the constructor of every deployment: Serve opens the port after it."""
    if not RAY_SERVE_USE_GRPC_BY_DEFAULT:
        replica.add_port_to_grpc_server = add_loopback_port  # type: ignore[attr-defined]


def add_loopback_port(server: Any, address: str) -> Any:
    return add_port_to_grpc_server(server, address.replace("[::]", "127.0.0.1"))  # type: ignore[no-untyped-call]
