"""The server in `examples/serve.py` does what the docs say of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from examples import serve
from precision_search import Seq2SeqGenerator
from precision_search.errors import InputError
from tests.conftest import HANGS_S
from tests.tiny_model import WORDS, write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("serve") / "model", seed=2)


@pytest.fixture
def client(model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    monkeypatch.setenv("MODEL_DIR", str(model))
    with TestClient(serve.app) as client:
        yield client


def test_the_server_gives_what_the_generator_gives(client: TestClient, model: Path) -> None:
    texts = ["a b c", "j"]
    expected = Seq2SeqGenerator.from_pretrained(model, device="cpu").generate(texts)

    found = client.post("/generate", json={"texts": texts}).json()

    assert found == {"texts": list(expected.texts), "finished": list(expected.finished)}
    assert client.get("/health").json() == {"device": "cpu", "waiting": 0}


def test_requests_side_by_side_each_get_their_own_answer(client: TestClient) -> None:
    alone = [client.post("/generate", json={"texts": [word]}).json() for word in WORDS]

    with ThreadPoolExecutor(len(WORDS)) as pool:
        together = list(pool.map(lambda word: client.post("/generate", json={"texts": [word]}).json(), WORDS))

    assert together == alone


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"texts": []},
        {"texts": ["a"] * (serve.MOST_SENTENCES + 1)},
        {"texts": ["a" * (serve.MOST_CHARACTERS + 1)]},
        {"texts": ["a"], "max_new_tokens": 0},
        {"texts": ["a"], "max_new_tokens": serve.MOST_NEW_TOKENS + 1},
    ],
)
def test_what_is_beyond_the_limits_is_refused(client: TestClient, body: dict[str, Any]) -> None:
    assert client.post("/generate", json=body).status_code == 422


def test_a_limit_of_the_request_holds(client: TestClient) -> None:
    texts = [" ".join(WORDS[:count]) for count in range(1, len(WORDS))]
    whole = client.post("/generate", json={"texts": texts}).json()

    cut = client.post("/generate", json={"texts": texts, "max_new_tokens": 1}).json()

    assert max(len(text.split()) for text in whole["texts"]) > 1
    assert max(len(text.split()) for text in cut["texts"]) == 1


def test_what_the_generator_refuses_is_said(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFIX", "a " * 2000)

    refused = client.post("/generate", json={"texts": ["a"]})

    assert refused.status_code == 422
    assert "fix:" in refused.json()["detail"]


def test_health_answers_and_a_full_queue_is_refused_while_others_wait(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "MOST_WAITING", 1)
    started, done = threading.Event(), threading.Event()
    generate = serve.app.state.generator.generate

    def slow(*arguments: Any, **options: Any) -> Any:
        started.set()
        assert done.wait(HANGS_S)
        return generate(*arguments, **options)

    monkeypatch.setattr(serve.app.state.generator, "generate", slow)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, "/generate", json={"texts": ["a"]})
        try:
            assert started.wait(HANGS_S)
            assert client.get("/health").json()["waiting"] == 1
            refused = client.post("/generate", json={"texts": ["a"]})
        finally:
            done.set()
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert first.result().status_code == 200


def test_a_server_without_a_model_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_DIR", str(tmp_path))
    with pytest.raises(InputError, match="not a model directory"), TestClient(serve.app):
        pass


@pytest.mark.parametrize("body", [b'{"texts": ["\\ud800"]}', b'{"texts": "\\ud800"}', b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_text_or_no_json_is_refused(client: TestClient, body: bytes) -> None:
    refused = client.post("/generate", content=body, headers={"Content-Type": "application/json"})

    assert refused.status_code in (400, 422)
    assert "input" not in str(refused.json()["detail"])


def ask(*messages: dict[str, Any], length: int | None = None) -> tuple[int, int]:
    """What the application answers to a request in these pieces, and how many of them it took."""
    sent: list[dict[str, Any]] = []
    left = list(messages)
    taken = 0

    async def receive() -> dict[str, Any]:
        nonlocal taken
        if not left:
            await asyncio.sleep(HANGS_S)
        taken += 1
        return left.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json")]
    headers += [] if length is None else [(b"content-length", str(length).encode())]
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": "/generate",
        "raw_path": b"/generate",
        "query_string": b"",
        "headers": headers,
    }
    asyncio.run(serve.app(scope, receive, send))
    status = next((message["status"] for message in sent if message["type"] == "http.response.start"), 0)
    return status, taken


def piece(body: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


def test_a_body_that_is_too_large_is_refused_before_it_is_read(client: TestClient) -> None:
    assert ask(length=64 << 20) == (413, 0)
    assert ask(*[piece(b"a" * serve.MOST_BYTES)] * 9) == (413, 2)
    assert ask(*[piece(b"a" * serve.MOST_BYTES)] * 9, length=3) == (413, 2)


def test_a_body_in_pieces_is_read(client: TestClient) -> None:
    assert ask(piece(b'{"texts": '), piece(b'["a"]'), piece(b"}", more=False)) == (200, 3)


def test_a_client_that_leaves_frees_its_slot(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    started, done, calls = threading.Event(), threading.Event(), []

    def slow(texts: list[str], **_options: Any) -> Any:
        calls.append(texts)
        started.set()
        assert done.wait(HANGS_S)
        raise InputError("nobody hears it")

    monkeypatch.setattr(serve.app.state.generator, "generate", slow)
    gone = {"type": "http.disconnect"}
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, "/generate", json={"texts": ["first"]})
        try:
            assert started.wait(HANGS_S)
            for _ in range(2 * serve.MOST_WAITING):
                ask(piece(b'{"texts": ["gone"]}', more=False), gone)
            assert client.get("/health").json()["waiting"] == 1
        finally:
            done.set()
        assert first.result().status_code == 422
    assert calls == [["first"]]


def test_a_client_that_leaves_before_its_body_is_whole_is_let_go(client: TestClient) -> None:
    assert ask(piece(b'{"texts": '), {"type": "http.disconnect"}) == (0, 2)
