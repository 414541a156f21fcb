"""Embeddings, searches and thumbnails over HTTP, with a model and an index without a network."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from fake_embedder import WIDTH, FakeEmbedder, FakeIndex, embed
from fake_model import FakeModel, wait_for
from starlette.testclient import TestClient

from caption_jax.serving.caption_service import ServiceSettings
from caption_jax.serving.http_app import PATHS, make_app
from caption_jax.serving.search_api import SEARCH_PATHS
from caption_jax.serving.upload_limits import UploadLimits

SETTINGS = ServiceSettings((1, 4), max_wait=0.0, max_queue=6, timeout=5.0, decoders=2)
LIMITS = UploadLimits(body_bytes=5000, images=3)
DOG = base64.b64encode(b"dog").decode()


class Server:
    """An application with a fake model, embedder and index."""

    def __init__(self, embedder: FakeEmbedder | None, settings: ServiceSettings = SETTINGS):
        self.model, self.embedder, self.log = FakeModel(), embedder, []
        self.app = make_app(self.model, settings, LIMITS, "", self.log.append, embedder)
        self.client = TestClient(self.app, raise_server_exceptions=False)

    def post(self, path_: str, content: object, kind: str = "application/json", **options):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        return self.client.post(path_, content=body, headers={"content-type": kind}, params=options)


def start(server: Server) -> Iterator[Server]:
    with server.client:
        wait_for(lambda: server.app.state.service.state == "ready")
        yield server
        server.model.gate.set()


@pytest.fixture
def server() -> Iterator[Server]:
    yield from start(Server(FakeEmbedder(FakeIndex())))


def test_each_kind_of_upload_has_the_same_embedding(server):
    form = server.client.post("/v1/embeddings", files=[("images", ("a.jpg", b"dog"))])
    raw = server.post("/v1/embeddings", b"dog", "image/png")
    parsed = server.post("/v1/embeddings", {"images": [DOG]})
    for response, name in ((form, "a.jpg"), (raw, ""), (parsed, "")):
        assert response.status_code == 200, response.text
        (answer,) = response.json()["embeddings"]
        assert (answer["index"], answer["name"]) == (0, name)
        np.testing.assert_allclose(answer["embedding"], embed("dog"), atol=1e-6)
        assert response.json()["id"] == response.headers["x-request-id"]
    assert server.log[0]["images"] == 1 and server.log[0]["path"] == "/v1/embeddings"


def test_texts_are_embedded_in_one_batch_of_a_compiled_size(server):
    response = server.post("/v1/embeddings", {"texts": ["a dog", "a cat", "x"]})
    answers = response.json()["embeddings"]
    assert response.status_code == 200 and [set(answer) for answer in answers] == [{"index", "embedding"}] * 3
    np.testing.assert_allclose([answer["embedding"] for answer in answers][1], embed("a cat"), atol=1e-6)
    assert all(len(answer["embedding"]) == WIDTH for answer in answers)
    assert server.embedder.warm_sizes == [1, 4] == server.model.warm_sizes
    assert {size for _, _, size in server.embedder.batches} <= {1, 4}
    assert sum(count for _, count, _ in server.embedder.batches) == 3


def test_an_unreadable_image_has_an_error_and_the_others_have_embeddings(server):
    files = [("images", (f"{text}.jpg", text.encode())) for text in ("dog", "bad")]
    dog, bad = server.client.post("/v1/embeddings", files=files).json()["embeddings"]
    assert "embedding" in dog and bad["error"] == {"code": "unreadable_image", "message": "cannot be decoded"}
    for path in ("/v1/embeddings", "/v1/search"):
        response = server.post(path, b"bad", "image/png")
        assert response.status_code == 422 and "cannot be decoded" in response.json()["error"]["message"]
    metrics = server.client.get("/metrics").text
    assert 'caption_jax_images_total{outcome="embedded"} 1.0\n' in metrics
    assert 'caption_jax_images_total{outcome="unreadable"} 3.0\n' in metrics


def test_all_ways_to_send_a_query_have_the_same_results(server):
    responses = [
        server.post("/v1/search", {"query": "dog", "limit": 2}),
        server.client.post("/v1/search", params={"query": "dog", "limit": 2}),
        server.client.post("/v1/search", files={"query": (None, "dog"), "limit": (None, "2")}),
        server.client.post("/v1/search", files=[("images", ("x.jpg", b"dog"))], params={"limit": 2}),
        server.post("/v1/search", b"dog", "image/png", limit=2),
        server.post("/v1/search", {"images": [DOG], "limit": 2}),
    ]
    expected = {"index": 0, "name": "dog.jpg", "score": 1.0, "caption": "a dog", "image": "/v1/images/0"}
    for response in responses:
        assert response.status_code == 200, response.text
        first, second = response.json()["results"]
        assert {**first, "score": round(first["score"], 5)} == expected and second["score"] <= first["score"]
    everything = server.post("/v1/search", {"query": "dog"}).json()["results"]
    horse = next(result for result in everything if result["name"] == "horse.jpg")
    assert len(everything) == 3 and set(horse) == {"index", "name", "score"}


def test_thumbnails_are_cached_by_their_tag(server):
    response = server.client.get("/v1/images/1")
    assert (response.status_code, response.content) == (200, b"cat")
    assert response.headers["content-type"] == "image/jpeg" and response.headers["etag"] == '"tag1"'
    assert response.headers["cache-control"] == "private, max-age=3600"
    for tag, status in (('"tag1"', 304), ('W/"tag1"', 304), ('"tag0"', 200)):
        again = server.client.get("/v1/images/1", headers={"if-none-match": tag})
        assert again.status_code == status and again.content == (b"" if status == 304 else b"cat")
    for row in ("2", "x", "-1", "1e3", "9" * 5000, "²", "%2e%2e%2fsecret"):
        response = server.client.get(f"/v1/images/{row}")
        assert response.status_code == 404 and response.json()["error"]["code"] == "not_found"
    assert 'path="/v1/images/{row}",status="304"} 2.0' in server.client.get("/metrics").text


BAD_REQUESTS = [
    ("/v1/embeddings", {"texts": []}, {}, 422, "send at least one text"),
    ("/v1/embeddings", {"texts": ["a"] * 4}, {}, 413, "the request has 4 texts; at most 3 are accepted"),
    ("/v1/embeddings", {"texts": [" "]}, {}, 422, "texts[0]: the text is empty"),
    ("/v1/embeddings", {"texts": ["a", 3]}, {}, 422, "texts[1]: the value must be a text"),
    ("/v1/embeddings", {"texts": ["x" * 1001]}, {}, 422, "texts[0]: has 1001 characters, more than 1000"),
    ("/v1/embeddings", {"texts": ["\ud800"]}, {}, 422, "texts[0]: contains half of a character"),
    ("/v1/embeddings", {"texts": "a dog"}, {}, 422, "texts must be a list"),
    ("/v1/embeddings", {"texts": ["a"], "images": [DOG]}, {}, 422, "send either images or texts"),
    ("/v1/embeddings", {"images": []}, {}, 422, "the request contains no image"),
    ("/v1/embeddings", {}, {}, 422, "the body must be an object such as"),
    ("/v1/embeddings", {"texts": ["a"]}, {"beams": 3}, 422, "unknown option 'beams'; this request takes none"),
    ("/v1/embeddings", {"images": [DOG]}, {"texts": "a"}, 422, "texts must be a list"),
    ("/v1/search", {}, {}, 422, "the request contains no query"),
    ("/v1/search", {"query": ""}, {}, 422, "query: the text is empty"),
    ("/v1/search", {"query": ["a"]}, {}, 422, "query: the value must be a text"),
    ("/v1/search", {"query": "\udfff"}, {}, 422, "query: contains half of a character"),
    ("/v1/search", {"query": "a", "limit": 0}, {}, 422, "limit: the value must be a whole number from 1 to 100"),
    ("/v1/search", {"query": "a", "limit": 101}, {}, 422, "limit: the value must be a whole number from 1 to 100"),
    ("/v1/search", {"query": "a", "limit": True}, {}, 422, "limit: the value must be a whole number"),
    ("/v1/search", {"query": "a", "limit": 1}, {"limit": 2}, 422, "the option 'limit' is set twice"),
    ("/v1/search", {"query": "a"}, {"path": "x"}, 422, "unknown option 'path'; the options are query, limit"),
    ("/v1/search", {"query": "a", "path": "x"}, {}, 422, "unknown key 'path'; the keys are query and limit and images"),
    ("/v1/search", {"query": "a", "images": [DOG]}, {}, 422, "send either a text or an image as query"),
    ("/v1/search", {"images": [DOG, DOG]}, {}, 422, "the request has 2 images; a search takes one"),
    ("/v1/search", [], {}, 422, "the body must be an object such as"),
]


@pytest.mark.parametrize(("path", "content", "options", "status", "message"), BAD_REQUESTS)
def test_bad_requests_are_refused_in_one_line(server, path, content, options, status, message):
    response = server.post(path, content, **options)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert message in error["message"] and "\n" not in error["message"] and error["code"]
    assert server.app.state.service.admitted == 0 and not server.embedder.batches


def test_a_body_without_a_type_is_refused_unless_it_is_empty(server):
    request = server.client.build_request("POST", "/v1/search", content=b"a dog")
    assert server.client.send(request).status_code == 415
    assert server.client.post("/v1/search").status_code == 422
    assert server.client.post("/v1/embeddings").status_code == 415


def test_servers_without_an_embedding_or_an_index_say_so(server):
    for embedder, path, message in (
        (None, "/v1/embeddings", "no joint embedding of images and texts"),
        (None, "/v1/search", "no joint embedding of images and texts"),
        (FakeEmbedder(None), "/v1/search", "needs to be started with --index"),
    ):
        for limited in start(Server(embedder)):
            response = limited.post(path, {"texts": ["a"]})
            assert response.status_code == 404 and message in response.json()["error"]["message"]
            assert limited.client.get("/v1/images/0").status_code == 404
            assert path not in limited.client.get("/openapi.json").json()["paths"]
            model = limited.client.get("/v1/model").json()
            assert model["search"] is None and (model["embeddings"] is None) == (embedder is None)
    model = server.client.get("/v1/model").json()
    assert model["embeddings"] == {"dimension": WIDTH} and model["search"]["images"] == 3
    paths = server.client.get("/openapi.json").json()["paths"]
    assert set(paths) == {*PATHS, *SEARCH_PATHS} - {"/openapi.json"}


@pytest.fixture
def narrow_server() -> Iterator[Server]:
    settings = ServiceSettings((1,), max_wait=0.0, max_queue=1, timeout=0.3, decoders=1)
    yield from start(Server(FakeEmbedder(FakeIndex()), settings))


def test_searches_share_the_queue_and_the_time_limit_of_captions(narrow_server):
    server, statuses = narrow_server, []
    server.model.gate.clear()
    caption = threading.Thread(
        target=lambda: statuses.append(server.post("/v1/captions", b"dog", "image/png").status_code)
    )
    caption.start()
    wait_for(lambda: server.app.state.service.admitted == 1)
    for path in ("/v1/search", "/v1/embeddings"):
        response = server.post(path, {"query": "dog"})
        assert response.status_code == 429 and int(response.headers["retry-after"]) >= 1
    assert server.client.get("/v1/images/0").status_code == 429
    caption.join()
    assert statuses == [503]
    response = server.post("/v1/search", {"query": "dog"})  # the device still runs the batch of the caption
    assert response.status_code == 503 and "longer than 0.3 s" in response.json()["error"]["message"]
    server.model.gate.set()
    wait_for(lambda: server.post("/v1/search", {"query": "dog"}).status_code == 200)


def test_names_in_unusual_charsets_neither_fail_nor_reach_the_answer_damaged(server):
    for charset, status in (("unicode_escape", 200), ("undefined", 422), ("no-such-charset", 200)):
        part = b'--x\r\nContent-Disposition: form-data; name="images"; filename="\\ud800.jpg"\r\n\r\ndog\r\n--x--\r\n'
        kind = f"multipart/form-data; boundary=x; charset={charset}"
        for path in ("/v1/embeddings", "/v1/captions"):
            response = server.post(path, part, kind)
            assert response.status_code == status, (charset, response.text)
