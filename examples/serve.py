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
from pydantic import BaseModel, Field

from precision_search import Generated, PrecisionSearchError, Seq2SeqGenerator

MOST_SENTENCES = 32
MOST_CHARACTERS = 2_000
MOST_NEW_TOKENS = 256
MOST_WAITING = 16
"""Requests that may wait; more would only time out, so they are told at once to come back."""

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


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Loads the model once; a server that cannot load it does not start."""
    app.state.generator = Seq2SeqGenerator.from_pretrained(os.environ["MODEL_DIR"])
    app.state.waiting = 0
    # One thread: calls of one generator run one after another anyway, and so nobody waits inside it.
    with ThreadPoolExecutor(1, "generate") as app.state.pool:
        yield


app = FastAPI(title="precision-search", lifespan=lifespan)


@app.get("/health")
async def health() -> Health:
    """For load balancers; it answers while sentences are generated."""
    return Health(device=app.state.generator.device, waiting=app.state.waiting)


@app.post("/generate")
async def generate(request: Request) -> Response:
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
    try:
        out: Generated = await asyncio.get_running_loop().run_in_executor(app.state.pool, call)
    except PrecisionSearchError as error:
        # 2 is what the sender can mend, such as a sentence that is too long for the model.
        raise HTTPException(422 if error.exit_code == 2 else 503, str(error)) from error
    finally:
        app.state.waiting -= 1
    if any(out.nonfinite):
        raise HTTPException(500, "the model met NaN or infinity")
    return Response(texts=list(out.texts), finished=list(out.finished))
