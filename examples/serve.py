"""A model behind HTTP, with FastAPI: `MODEL_DIR=RUN/model uvicorn examples.serve:app`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated

from fastapi import FastAPI, HTTPException
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from precision_search import Generated, PrecisionSearchError, Seq2SeqGenerator

MOST_SENTENCES = 32
MOST_CHARACTERS = 2_000
MOST_NEW_TOKENS = 256
MOST_WAITING = 16
"""Requests that may wait; more would only time out, so they are told at once to come back."""
MOST_BYTES = 1 << 20
"""Of a body: the most sentences of the most characters, each as an escape of JSON."""

Sentence = Annotated[str, Field(max_length=MOST_CHARACTERS)]


class Request(BaseModel):
    """Sentences, which become one batch."""

    texts: Annotated[list[Sentence], Field(min_length=1, max_length=MOST_SENTENCES)]
    max_new_tokens: Annotated[int, Field(ge=1, le=MOST_NEW_TOKENS)] | None = None


class Response(BaseModel):
    """What was generated; a sentence that is not finished was cut at the limit."""

    texts: list[str]
    finished: list[bool]


class Health(BaseModel):
    """Where the model runs, and how many requests are in work or wait."""

    device: str
    waiting: int


class BodyLimit:
    """Refuses a body that is too large, before it is read where its length is told and as soon as it is where not."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on with its body, which is whole by then."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        told = dict(scope["headers"]).get(b"content-length", b"0")
        size = int(told) if told.isdigit() else 0
        body, more = bytearray(), size <= MOST_BYTES
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            size = max(size, len(body))
            more = message.get("more_body", False) and size <= MOST_BYTES
        if size > MOST_BYTES:
            refusal = JSONResponse({"detail": f"a body has at most {MOST_BYTES} bytes"}, 413, {"Connection": "close"})
            await refusal(scope, receive, send)
            return
        first: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def receive_again() -> Message:
            return first.pop() if first else await receive()

        await self._app(scope, receive_again, send)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Loads the model once; a server that cannot load it does not start."""
    app.state.generator = Seq2SeqGenerator.from_pretrained(os.environ["MODEL_DIR"])
    app.state.waiting = 0
    # One thread: calls of one generator run one after another anyway, and so nobody waits inside it.
    with ThreadPoolExecutor(1, "generate") as app.state.pool:
        yield


app = FastAPI(title="precision-search", lifespan=lifespan)
app.add_middleware(BodyLimit)


@app.exception_handler(RequestValidationError)
async def invalid(_request: HttpRequest, error: RequestValidationError) -> JSONResponse:
    """What is wrong, and where; not the input, which may hold what no answer can, such as half a surrogate pair."""
    return JSONResponse(
        {"detail": [{key: each[key] for key in ("type", "loc", "msg")} for each in error.errors()]}, 422
    )


@app.get("/health")
async def health() -> Health:
    """For load balancers; it answers while sentences are generated."""
    return Health(device=app.state.generator.device, waiting=app.state.waiting)


@app.post("/generate")
async def generate(request: Request, http: HttpRequest) -> Response:
    """Generates for the sentences of a request."""
    if app.state.waiting >= MOST_WAITING:
        raise HTTPException(503, "too many requests wait", headers={"Retry-After": "1"})
    call = partial(
        app.state.generator.generate,
        request.texts,
        prefix=os.environ.get("PREFIX", ""),
        max_new_tokens=request.max_new_tokens,
    )
    app.state.waiting += 1
    work = asyncio.get_running_loop().run_in_executor(app.state.pool, call)
    left = asyncio.create_task(has_left(http))
    try:
        await asyncio.wait((work, left), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise HTTPException(499, "the client has left")  # nobody reads it
        out: Generated = work.result()
    except PrecisionSearchError as error:
        # 2 is what the sender can mend, such as a sentence that is too long for the model.
        raise HTTPException(422 if error.exit_code == 2 else 503, str(error)) from error
    finally:
        left.cancel()
        work.cancel()  # one that waits never begins; one that has begun ends by itself
        app.state.waiting -= 1
    if any(out.nonfinite):
        raise HTTPException(500, "the model met NaN or infinity")
    return Response(texts=list(out.texts), finished=list(out.finished))


async def has_left(http: HttpRequest) -> None:
    """Ends when the client closes the connection."""
    while (await http.receive())["type"] != "http.disconnect":
        pass
