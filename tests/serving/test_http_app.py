"""The HTTP API: what it accepts, what it answers, and how it refuses."""

from __future__ import annotations

import base64
import dataclasses
import json
import threading
from collections.abc import Iterator

import pytest
from fake_model import FakeModel, wait_for
from starlette.testclient import TestClient

from caption_jax.serving.caption_service import ServiceSettings
from caption_jax.serving.http_app import PATHS, make_app
from caption_jax.serving.upload_limits import UploadLimits

TOKEN = "a-long-secret-token"
SETTINGS = ServiceSettings((1, 4), max_wait=0.0, max_queue=6, timeout=5.0, decoders=2)
LIMITS = UploadLimits(body_bytes=5000, images=3)


class Server:
    """An application with a fake model, and its access log."""

    def __init__(self, settings: ServiceSettings = SETTINGS, token: str = ""):
        self.model, self.log = FakeModel(), []
        self.app = make_app(self.model, settings, LIMITS, token, self.log.append)
        self.client = TestClient(self.app, raise_server_exceptions=False)

    def wait(self, state: str = "ready") -> None:
        wait_for(lambda: self.app.state.service.state == state)

    def post(self, content: bytes = b"dog", kind: str = "image/png", **options):
        return self.client.post("/v1/captions", content=content, headers={"content-type": kind}, params=options)

    def post_json(self, content: object, **options):
        return self.post(json.dumps(content).encode(), "application/json", **options)


@pytest.fixture
def server() -> Iterator[Server]:
    yield from start(Server())


def start(server: Server) -> Iterator[Server]:
    with server.client:
        server.wait()
        yield server
        server.model.gate.set()


def encode(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_each_kind_of_body_has_the_same_answer(server):
    form = server.client.post("/v1/captions", files=[("images", ("a.jpg", b"dog"))], data={"beams": "3"})
    raw = server.post(beams=3)
    parsed = server.post_json({"images": [encode("dog")], "options": {"beams": 3}})
    url = server.post_json({"images": [f"data:image/png;base64,{encode('dog')}"], "options": {"beams": 3}})
    for response, name in ((form, "a.jpg"), (raw, ""), (parsed, ""), (url, "")):
        assert response.status_code == 200, response.text
        answer = {"index": 0, "name": name, "caption": "dog", "log_prob": 0.0, "alternatives": []}
        assert response.json()["captions"] == [answer]
        assert response.json()["id"] == response.headers["x-request-id"]


def test_the_attention_of_each_word_is_an_option(server):
    plain, attended = (
        server.post(b"a dog", beams=3, candidates=2, **options) for options in ({}, {"attention": "true"})
    )
    expected = {"words": ["a", "dog"], "weights": [[[1, 0, 0], [0, 0, 0]], [[0, 1, 0], [0, 0, 0]]]}
    (answer,) = attended.json()["captions"]
    assert answer.pop("attention") == expected and [answer] == plain.json()["captions"]
    assert "attention" not in answer["alternatives"][0]


def test_context_is_a_list_in_json_and_repeated_elsewhere(server):
    server.model.offer = dataclasses.replace(server.model.offer, max_texts=2)
    texts, form = ["a lake", "at dawn"], [("images", ("a.jpg", b"dog"))]
    responses = [
        server.post(context=texts),
        server.post_json({"images": [encode("dog")], "options": {"context": texts}}),
        server.post_json({"images": [encode("dog")], "options": {"context": texts[1:]}}, context=texts[0]),
        server.client.post("/v1/captions", files=form, data={"context": texts}),
        server.client.post("/v1/captions", files=form, data={"context": texts[1:]}, params={"context": texts[:1]}),
    ]
    assert [response.status_code for response in responses] == [200, 200, 422, 200, 200]
    assert server.model.contexts == [tuple(texts)] * 4
    api = server.client.get("/openapi.json").json()
    schemas = {item["name"]: item["schema"] for item in api["paths"]["/v1/captions"]["post"]["parameters"]}
    assert schemas["context"]["maxItems"] == 2
    assert server.client.get("/v1/model").json()["options"]["context"] == 2


def test_a_bad_image_has_an_error_and_the_others_have_captions(server):
    files = [("images", (f"{text}.jpg", text.encode())) for text in ("dog", "bad", "cat")]
    response = server.client.post("/v1/captions", files=files, params={"beams": 3, "candidates": 2})
    assert response.status_code == 200
    dog, bad, cat = response.json()["captions"]
    assert (dog["caption"], cat["caption"]) == ("dog", "cat")
    assert dog["alternatives"] == [{"caption": "dog", "log_prob": -1.0}]
    assert bad == {
        "index": 1,
        "name": "bad.jpg",
        "error": {"code": "unreadable_image", "message": "cannot be decoded"},
    }
    only_bad = server.post(b"bad")
    assert only_bad.status_code == 422
    assert only_bad.json()["error"]["message"] == "no image can be read: cannot be decoded"


BAD_REQUESTS = [
    (b"x" * 5001, "image/png", {}, 413, "the request is larger than 5,000 bytes"),
    (b"dog", "text/plain", {}, 415, "content-type 'text/plain': send multipart/form-data, application/json, or"),
    (b"dog", "", {}, 415, "content-type ''"),
    (b"dog", "image/png", {"beams": 4}, 422, "beams=4: this server has compiled beam search with 3 (--beams)"),
    (b"dog", "image/png", {"url": "http://host/a.jpg"}, 422, "unknown option 'url'; the options are method,"),
    (b"dog", "image/png", {"max_length": 99}, 422, "max_length=99: the value must be from 3 to 20"),
    (b"{", "application/json", {}, 422, "the body is not valid JSON"),
    (b"[" * 4000, "application/json", {}, 422, "the body is not valid JSON"),
    (b"[]", "application/json", {}, 422, "the body must be an object such as"),
    (b'{"images": []}', "application/json", {}, 422, "the request contains no image"),
    (b'{"images": ["http://h/a.jpg"]}', "application/json", {}, 422, "images[0] is not a string in base64; URLs are"),
    (b'{"images": ["data:image/png,x"]}', "application/json", {}, 422, "images[0] is not a string in base64"),
    (b'{"images": [3]}', "application/json", {}, 422, "images[0] is not a string in base64"),
    (b'{"images": ["", "", "", ""]}', "application/json", {}, 413, "the request has 4 images; at most 3 are accepted"),
    (b'{"images": ["ZA=="], "x": 1}', "application/json", {}, 422, "unknown key 'x'; the keys are images and options"),
    (b'{"images": ["ZA=="], "options": {"beams": 3}}', "application/json", {"beams": 3}, 422, "'beams' is set twice"),
    (b"no form", "multipart/form-data", {}, 422, "the form cannot be read: Missing boundary"),
]


@pytest.mark.parametrize(("content", "kind", "options", "status", "message"), BAD_REQUESTS)
def test_bad_requests_are_refused_in_one_line(server, content, kind, options, status, message):
    response = server.post(content, kind, **options)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert message in error["message"] and "\n" not in error["message"] and error["code"]
    assert server.app.state.service.admitted == 0 and server.post().status_code == 200


def test_the_limit_on_bytes_does_not_depend_on_the_content_length(server):
    response = server.client.post("/v1/captions", content=iter([b"x" * 3000] * 2), headers={"content-type": "image/x"})
    assert response.status_code == 413
    files = [("images", (f"{number}.jpg", b"dog")) for number in range(4)]
    assert server.client.post("/v1/captions", files=files).status_code == 413


def test_a_full_queue_answers_429_with_the_seconds_to_wait(server):
    server.model.gate.clear()
    statuses = []
    threads = [threading.Thread(target=lambda: statuses.append(server.post().status_code)) for _ in range(6)]
    for thread in threads:
        thread.start()
    wait_for(lambda: server.app.state.service.admitted == 6)
    response = server.post()
    assert response.status_code == 429 and int(response.headers["retry-after"]) >= 1
    assert response.json()["error"]["code"] == "queue_full"
    server.model.gate.set()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 6 and server.post().status_code == 200


def test_a_request_that_takes_too_long_answers_503():
    for server in start(Server(ServiceSettings((1,), max_wait=0.0, timeout=0.2))):
        server.model.gate.clear()
        response = server.post()
        assert response.status_code == 503 and "longer than 0.2 s" in response.json()["error"]["message"]


def test_a_failed_batch_answers_500_without_details(server, caplog):
    server.model.before_batch = lambda: 1 / 0
    response = server.post()
    assert response.status_code == 500 and "ZeroDivision" not in response.text
    assert "ZeroDivisionError" in caplog.text
    server.model.before_batch = lambda: None
    assert server.post().status_code == 200


def test_requests_wait_for_the_compilation():
    server = Server()
    server.model.gate.clear()
    with server.client:
        assert server.client.get("/healthz").status_code == 200
        assert server.client.get("/readyz").status_code == 503
        response = server.post()
        assert response.status_code == 503 and response.headers["retry-after"]
        server.model.gate.set()
        server.wait()
        assert server.client.get("/readyz").json() == {"status": "ready"}
        assert server.post().status_code == 200


def test_the_model_and_the_api_are_described(server):
    model = server.client.get("/v1/model").json()
    options = {"method": "greedy", "beams": [3], "max_length": 20, "attention": True, "context": 0}
    assert model["step"] == 7 and model["options"] == options
    assert model["limits"] == {"request_bytes": 5000, "images": 3, "queue": 6, "timeout_seconds": 5.0}
    api = server.client.get("/openapi.json").json()
    assert set(api["paths"]) == set(PATHS) - {"/openapi.json"}
    names = [parameter["name"] for parameter in api["paths"]["/v1/captions"]["post"]["parameters"]]
    assert names == ["method", "beams", "candidates", "prefix", "max_length", "attention"]


def test_metrics_count_requests_images_and_batches(server):
    files = [("images", (text, text.encode())) for text in ("dog", "bad")]
    server.client.post("/v1/captions", files=files)
    server.client.get("/secret/path")
    text = server.client.get("/metrics").text
    for line in (
        'caption_jax_requests_total{method="POST",path="/v1/captions",status="200"} 1.0',
        'caption_jax_requests_total{method="GET",path="other",status="404"} 1.0',
        'caption_jax_images_total{outcome="captioned"} 1.0',
        'caption_jax_images_total{outcome="unreadable"} 1.0',
        "caption_jax_batch_images_count 1.0",
        'caption_jax_request_seconds_count{method="POST",path="/v1/captions"} 1.0',
        "caption_jax_queue_images 0.0",
        "caption_jax_ready 1.0",
    ):
        assert f"{line}\n" in text
    assert "secret" not in text


def test_request_ids_are_accepted_or_made_and_logged(server):
    headers = {"x-request-id": "abc-1", "content-type": "image/png"}
    response = server.client.post("/v1/captions", content=b"dog", headers=headers)
    assert response.headers["x-request-id"] == response.json()["id"] == "abc-1"
    made = [
        server.client.get("/healthz", headers={"x-request-id": text}).headers["x-request-id"] for text in ("", "a b")
    ]
    assert all(len(text) == 32 for text in made) and made[0] != made[1]
    entry = server.log[0]
    assert (entry["id"], entry["path"], entry["status"], entry["images"]) == ("abc-1", "/v1/captions", 200, 1)
    assert 0 <= entry["seconds"] < 5 and entry["client"] and json.dumps(entry)


def test_other_paths_methods_and_origins_are_refused(server):
    assert server.client.get("/v1/captions").status_code == 405
    assert server.client.get("/nothing").json()["error"]["code"] == "not_found"
    response = server.client.get("/v1/model", headers={"origin": "https://other.example"})
    assert "access-control-allow-origin" not in response.headers


def test_a_token_is_required_except_by_load_balancers():
    for server in start(Server(token=TOKEN)):
        for path in PATHS[1:]:
            statuses = [
                server.client.get(path, headers={"authorization": value} if value else {}).status_code
                for value in ("", f"Bearer {TOKEN}x", f"Basic {TOKEN}", "Bearer é".encode(), f"bearer {TOKEN}")
            ]
            assert statuses == ([200] * 5 if path in ("/healthz", "/readyz") else [401] * 4 + [200])
        response = server.post()
        assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
        assert not server.model.batches
