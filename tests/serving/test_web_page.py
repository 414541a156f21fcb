"""The page of the server and its files: their headers, what needs a token, and what they refer to."""

from __future__ import annotations

import re

import pytest
from fake_model import FakeModel
from starlette.testclient import TestClient

from caption_jax.serving.caption_service import ServiceSettings
from caption_jax.serving.http_app import make_app
from caption_jax.serving.upload_limits import UploadLimits
from caption_jax.serving.web_page import PAGE_PATHS

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
KINDS = {"/": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@pytest.fixture(scope="module")
def client() -> TestClient:
    app = make_app(FakeModel(), ServiceSettings(), UploadLimits(), "a-long-secret-token", lambda entry: None)
    return TestClient(app)


@pytest.mark.parametrize("path", PAGE_PATHS)
def test_each_file_has_strict_headers_and_needs_no_token(client, path):
    response = client.get(path)
    assert response.status_code == 200 and response.content
    kind = next(kind for suffix, kind in KINDS.items() if path.endswith(suffix))
    assert response.headers["content-type"].partition(";")[0] == kind
    assert response.headers["content-security-policy"] == POLICY
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"


def test_a_browser_reads_a_file_again_only_if_it_has_changed(client):
    tag = client.get("/page/script.js").headers["etag"]
    for value, status in ((tag, 304), (f'"x", W/{tag}', 304), ('"x"', 200)):
        response = client.get("/page/script.js", headers={"if-none-match": value})
        assert response.status_code == status and response.headers["etag"] == tag
        assert response.headers["cache-control"] == "no-cache"
        assert bool(response.content) == (status == 200)


def test_other_paths_still_need_the_token(client):
    for path in ("/page/", "/page/index.html", "/page/../v1/model", "/page/%2e%2e/web_page.py", "/v1/model"):
        assert client.get(path).status_code == 401
    assert client.post("/").status_code == 405


def test_the_page_has_no_inline_code_and_refers_only_to_its_files(client):
    html = client.get("/").text
    assert not re.search(r"<style|\son\w+=|\sstyle=|javascript:", html)
    assert not re.search(r"<script[^>]*>[^<]", html)
    links = re.findall(r'(?:src|href|action)="([^"]*)"', html)
    assert {f"/{link}" for link in links} == set(PAGE_PATHS) - {"/"}
    for path in PAGE_PATHS[1:3]:
        assert not re.search(r"https?:|//\w+\.|@import|url\(", client.get(path).text)


def test_the_script_finds_its_elements_in_the_page(client):
    html, script = client.get("/").text, client.get("/page/script.js").text
    ids = set(re.findall(r'find\("#([\w-]+)"', script))
    assert ids and ids <= set(re.findall(r'id="([\w-]+)"', html))
    classes = {name for names in re.findall(r'class="([^"]+)"', html) for name in names.split()}
    assert set(re.findall(r'find\("\.([\w-]+)', script)) <= classes
    assert "innerHTML" not in script and "eval(" not in script
