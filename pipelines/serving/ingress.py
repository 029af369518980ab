"""The HTTP side of the service: routes, limits, the token, and errors as one line of JSON."""

import asyncio
import hashlib
import secrets
import time
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Annotated, Any, Literal

import ray.exceptions
from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus
from starlette.exceptions import HTTPException

from pipelines.config.serving import ServeConfig
from pipelines.serving.admission import Admission
from pipelines.serving.loopback import listen_on_loopback
from pipelines.serving.messages import Answer, Format, Offer, Query, RejectedRequestError, check_query

# Deaths of replicas that worked on a photograph after which it is taken for their cause.
MAX_DEATHS = 8
PREVIEW_SIDE = 1280
PAGE = files("pipelines.serving") / "page"
# The page and its answers: nothing from elsewhere, and nothing that browsers keep.
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; style-src 'self' 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {"example": {"error": "one line"}}}}
    for status, text in {
        401: "the token is missing or wrong",
        408: "the upload took too long",
        413: "too many bytes or pixels",
        415: "no image in a format that is read",
        422: "a damaged photograph, or a setting that is not taken",
        503: "no room; Retry-After says when to come back",
        504: "the photograph took too long",
    }.items()
}
PHOTOGRAPH = {
    "requestBody": {"required": True, "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}
}

app: FastAPI = FastAPIOffline(
    title="ReDDiT on Ray",
    description="Enhances low-light photographs with a few-step diffusion student; the file is the request's body.",
    redoc_url=None,
)
app.mount("/page", StaticFiles(directory=str(PAGE)), name="page")
bearer = HTTPBearer(auto_error=False, description="the service's token, where it asks for one")


@app.exception_handler(RejectedRequestError)
async def show_rejection(_: Request, error: RejectedRequestError) -> JSONResponse:
    return JSONResponse({"error": error.reason}, error.status, error.headers)


@app.exception_handler(HTTPException)
async def show_http_error(_: Request, error: HTTPException) -> JSONResponse:
    return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)


@app.exception_handler(RequestValidationError)
async def show_bad_settings(_: Request, error: RequestValidationError) -> JSONResponse:
    parts = (f"{part['loc'][1]}: {part['msg']} (it is {part.get('input')!r})" for part in error.errors())
    return JSONResponse({"error": " ".join("; ".join(parts).split())}, 422)


@app.exception_handler(Exception)
async def show_failure(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": f"the service failed ({type(error).__name__}); its log says more"}, 500)


@app.middleware("http")
async def add_headers(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
    response = await call(request)
    if not request.url.path.startswith(("/docs", "/static-offline-docs")):  # whose pages need inline scripts
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
    return response


def reject_unknown(request: Request, known: set[str]) -> None:
    """Raises RejectedRequestError for settings that do not exist, which would else have no effect."""
    if unknown := sorted(set(request.query_params) - known):
        raise RejectedRequestError(422, f"{unknown[0]!r} is no setting; there are: {', '.join(sorted(known))}")


# Serve pickles the app here, so all that it calls must be defined above.
@serve.ingress(app)
class Ingress:
    """Lets requests in, and hands the photographs to the replicas of the student."""

    def __init__(
        self, student: DeploymentHandle[Any], config: ServeConfig, offer: Offer, token_sha256: str, turns: int
    ) -> None:
        """`turns` is the number of photographs that all replicas together take at a time."""
        listen_on_loopback()
        self.student, self.config, self.offer, self.token_sha256 = student, config, offer, token_sha256
        self.admission = Admission(config.queue)
        # A photograph whose replica dies keeps its turn. Serve's own queue would put it behind those that came later.
        self.turns = asyncio.Semaphore(turns)

    @app.get("/", include_in_schema=False)
    async def page(self) -> Response:
        return Response((PAGE / "index.html").read_bytes(), media_type="text/html; charset=utf-8")

    @app.get("/settings")
    async def settings(self) -> Offer:
        """What the service does: default and allowed steps, brightness, formats, limits."""
        return self.offer

    @app.get("/health")
    async def health(self) -> dict[str, str]:
        """Whether the service answers at all; `/ready` says whether it can enhance."""
        return {"status": "ok"}

    @app.get("/ready", responses={503: {"description": "no replica of the student is ready"}})
    async def ready(self) -> Response:
        """Whether a replica of the student runs."""
        status = await asyncio.to_thread(serve.status)
        found = status.applications.get(serve.get_replica_context().app_name)
        students = found.deployments[self.student.deployment_name].replica_states if found else {}
        running = sum(count for state, count in students.items() if state == "RUNNING")
        is_ready = bool(running) and found is not None and found.status != ApplicationStatus.DELETING
        return JSONResponse({"ready": is_ready, "replicas": running}, 200 if is_ready else 503)

    @app.post("/enhance", responses={200: {"content": {"image/*": {}}}, **ERRORS}, openapi_extra=PHOTOGRAPH)
    async def enhance(
        self,
        request: Request,
        sent: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
        brightness: float | Literal["auto"] = "auto",
        steps: int = 0,
        seed: int = 0,
        format: Format = "auto",
    ) -> Response:
        """Enhances one photograph, which is the body; the answer is a photograph with the same metadata.

        `brightness` is the mean luma of the result, in (0, 1); `steps` are sampling steps, 0 the usual number; `seed`
        is that of the noise; `format` is that of the file, the photograph's own for `auto`.
        """
        self.check_token(sent)
        reject_unknown(request, {"brightness", "steps", "seed", "format"})
        query = Query(brightness=None if brightness == "auto" else brightness, steps=steps, seed=seed, format=format)
        check_query(query, self.offer)
        return await self.answer(request, "enhance", query, time.time())

    @app.post("/preview", responses={200: {"content": {"image/png": {}}}, **ERRORS}, openapi_extra=PHOTOGRAPH)
    async def preview(
        self,
        request: Request,
        sent: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
        side: int = PREVIEW_SIDE,
    ) -> Response:
        """The photograph as it is, upright, as a PNG of at most `side` pixels a side: what a browser can show."""
        self.check_token(sent)
        reject_unknown(request, {"side"})
        if not 16 <= side <= 4096:
            raise RejectedRequestError(422, f"side is {side}, but must be between 16 and 4096")
        return await self.answer(request, "preview", side)

    def check_token(self, sent: HTTPAuthorizationCredentials | None) -> None:
        found = hashlib.sha256(sent.credentials.encode()).hexdigest() if sent else ""
        if self.token_sha256 and not secrets.compare_digest(found, self.token_sha256):
            reason = "this service needs its token; send it as the header Authorization: Bearer TOKEN"
            raise RejectedRequestError(401, reason, {"WWW-Authenticate": "Bearer"})

    async def answer(self, request: Request, method: str, *settings: Any) -> Response:
        """The response to a photograph, which a replica makes."""
        with self.admission.admitted():
            data = await self.read_body(request)
            try:
                async with asyncio.timeout(self.config.timeout), self.turns:
                    answer = await self.ask(method, data, *settings)
            except TimeoutError:
                reason = (
                    f"the photograph took longer than {self.config.timeout:g} s; send a smaller one, or try again later"
                )
                raise RejectedRequestError(504, reason) from None
        if answer.status != 200:
            raise RejectedRequestError(answer.status, answer.reason)
        headers = {"Server-Timing": f"network;dur={answer.seconds * 1000:.0f}"}
        if answer.notes:  # what of the metadata could not be kept
            headers["X-Not-Kept"] = "; ".join(answer.notes)
        return Response(answer.data, media_type=answer.media_type, headers=headers)

    async def ask(self, method: str, data: bytes, *settings: Any) -> Answer:
        """A replica's answer; if it dies, another one's. Deaths while the photograph waited do not count against it."""
        deaths, student = 0, self.student.options(stream=True)
        while deaths < MAX_DEATHS:
            is_worked_on = False
            stream = getattr(student, method).remote(data, *settings)
            try:
                async for said in stream:
                    if isinstance(said, Answer):
                        return said
                    is_worked_on = said
            except asyncio.CancelledError:
                stream.cancel()
                raise
            except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError):
                deaths += is_worked_on
        reason = f"{MAX_DEATHS} replicas died while they worked on this photograph; try another one"
        raise RejectedRequestError(503, reason, {"Retry-After": "60"})

    async def read_body(self, request: Request) -> bytes:
        """The photograph's bytes, at most so many and in at most so much time."""
        if request.headers.get("content-type", "").startswith("multipart/"):
            raise RejectedRequestError(
                415, "the body is a form; send the file itself, such as curl --data-binary @FILE"
            )
        most = int(self.config.max_megabytes * 1e6)
        too_large = RejectedRequestError(
            413, f"the file has more than {self.config.max_megabytes:g} MB, the most that is taken"
        )
        declared = request.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > most:
            raise too_large
        data = bytearray()
        try:
            async with asyncio.timeout(self.config.timeout):
                async for chunk in request.stream():
                    data += chunk
                    if len(data) > most:
                        raise too_large
        except TimeoutError:
            raise RejectedRequestError(408, f"the upload took longer than {self.config.timeout:g} s") from None
        if not data:
            raise RejectedRequestError(422, "the body is empty; send the photograph's file as the body")
        return bytes(data)
