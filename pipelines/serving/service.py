"""Starts the service: replicas of the student behind one ingress, on Ray Serve."""

import contextlib
import hashlib
import os
import signal
import socket
import threading
from typing import Any

from ray import serve
from ray.serve.config import BackpressureConfig

from pipelines.cluster import check_gpus, use_gpu
from pipelines.config.parts import ComputeConfig
from pipelines.config.serving import ServeConfig
from pipelines.reporting import Report, report_console
from pipelines.serving.ingress import Ingress
from pipelines.serving.messages import Offer, make_offer
from pipelines.serving.replica import StudentReplica
from pipelines.weights import load_network

TOKEN_VARIABLE = "REDDIT_SERVE_TOKEN"
LEAST_TOKEN = 16
APPLICATION = "reddit"
# One photograph is enhanced while its predecessor is encoded and its successor decoded.
CALLS_PER_BATCH = 3
RETRY_AFTER_S = 5.0
INGRESS_ROOM = 200
LOGS = {"encoding": "TEXT", "log_level": "WARNING", "enable_access_log": False}


def application(config: ServeConfig) -> serve.Application:
    """The Serve application, for `serve.run`, `serve run` and KubeRay.

    Raises:
        ValueError: if the weights cannot be used, or a token is needed and not there.
    """
    token = token_of(config)
    offer = make_offer(config, load_network(config.weights), bool(token))
    # Ray shows what deployments are made of, so the ingress gets the token's hash.
    token_sha256 = hashlib.sha256(token.encode()).hexdigest() if token else ""
    gpu, calls = use_gpu(config.compute), CALLS_PER_BATCH * config.batch
    student = serve.deployment(
        name="student",
        max_ongoing_requests=calls,
        ray_actor_options={"num_gpus": 1} if gpu else {"num_cpus": config.compute.cpus_per_worker},
        health_check_period_s=5,
        **scaling(config.compute, config.batch),
    )(StudentReplica)
    ingress = serve.deployment(
        name="ingress",
        # The ingress itself says in JSON what is beyond the queue; only a flood is answered by Serve.
        max_ongoing_requests=config.queue + INGRESS_ROOM,
        max_queued_requests=INGRESS_ROOM,
        backpressure_config=BackpressureConfig(retry_after_s=RETRY_AFTER_S),
        ray_actor_options={"num_cpus": 0},
    )(Ingress)
    replicas, turns = student.bind(config, "cuda" if gpu else "cpu"), calls * config.compute.max_workers
    built: serve.Application = ingress.bind(replicas, config, offer, token_sha256, turns)
    return built


def scaling(compute: ComputeConfig, batch: int) -> dict[str, Any]:
    """A fixed number of replicas, or as many as requests wait for."""
    if not compute.elastic:
        return {"num_replicas": compute.max_workers}
    limits = {"min_replicas": compute.min_workers, "max_replicas": compute.max_workers}
    return {"autoscaling_config": {**limits, "target_ongoing_requests": batch}}


def token_of(config: ServeConfig) -> str:
    """The token that requests need; empty if they need none.

    Raises:
        ValueError: if one is needed and not there, or is short enough to be guessed.
    """
    token = os.environ.get(TOKEN_VARIABLE, "")
    if config.token == "no" or (config.token == "auto" and not token and config.on_loopback):
        return ""
    if not token:
        raise ValueError(
            f"a service at {config.host} that needs a token finds none in {TOKEN_VARIABLE}; set that variable, listen "
            "on 127.0.0.1, or say --token no to let everybody in who can reach it"
        )
    if len(token) < LEAST_TOKEN:
        raise ValueError(
            f"the token in {TOKEN_VARIABLE} has {len(token)} characters, but must have at least {LEAST_TOKEN}; "
            "openssl rand -hex 16 makes one"
        )
    return token


def plan_service(config: ServeConfig) -> Report:
    """What would be served."""
    offer = make_offer(config, load_network(config.weights), bool(token_of(config)))
    return Report(title=f"Plan of serve: http://{config.host}:{config.port}", facts=facts_of(config, offer))


def facts_of(config: ServeConfig, offer: Offer) -> dict[str, Any]:
    compute = config.compute
    replicas = f"{compute.min_workers}:{compute.max_workers}" if compute.elastic else str(compute.workers)
    return {"weights": config.weights, "replicas": replicas, "queue": config.queue, **offer.as_json()}


def run_service(config: ServeConfig) -> Report:
    """Serves until it is interrupted (Ctrl-C, SIGTERM).

    Raises:
        ValueError: if the weights cannot be used, the address is taken, or a token is needed and not there.
    """
    check_gpus(config.compute)
    built = application(config)
    check_address(config.host, config.port)
    serve.start(http_options={"host": config.host, "port": config.port}, logging_config=LOGS)
    serve.run(built, name=APPLICATION, logging_config=LOGS)
    address = f"http://{config.host}:{config.port}"
    report_console().print(f"serving {config.weights} at {address}; its API is at {address}/docs; Ctrl-C stops it")
    wait_for_stop()
    serve.shutdown()  # type: ignore[no-untyped-call]
    return Report(title=f"Stopped serving at {address}")


def check_address(host: str, port: int) -> None:
    """Raises ValueError if nobody can listen there."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ValueError(
            f"{host}:{port} cannot be listened on ({error.strerror or error}); give another --port or --host"
        ) from None


def wait_for_stop() -> None:
    """Returns at Ctrl-C or SIGTERM."""
    stop = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with contextlib.suppress(KeyboardInterrupt):
        stop.wait()
    signal.signal(signal.SIGTERM, before)
