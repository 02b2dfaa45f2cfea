"""The server in `examples/serve.py` does what the docs say of it."""

from __future__ import annotations

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
