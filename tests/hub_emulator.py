"""An emulator of the Hugging Face Hub on loopback: creates repositories, and stores and serves their files.

Implements the HTTP interface that huggingface_hub uses in `create_repo`, `upload_folder` and `snapshot_download`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

TOKEN = "hf_emulated"


class HubEmulator:
    """A Hub, running from `__enter__` to `__exit__`.

    Attributes:
        files: contents of all files by path, for each repository.
        private: whether a repository is private.
        url: its address.
    """

    def __init__(self):
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}  # large files by SHA-256
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> HubEmulator:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def commit_id(self, repository: str) -> str:
        """Returns the id of the newest commit, which depends on the files only."""
        content = sorted((path, hashlib.sha1(data).hexdigest()) for path, data in self.files[repository].items())
        return hashlib.sha1(repr(content).encode()).hexdigest()

    def commit(self, repository: str, lines: list[bytes]) -> None:
        """Adds the files of a commit in the format of the Hub: one JSON object per line."""
        for operation in map(json.loads, lines):
            value = operation["value"]
            if operation["key"] == "file":
                self.files[repository][value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                self.files[repository][value["path"]] = self.objects[value["oid"]]


class _Handler(BaseHTTPRequestHandler):
    hub: HubEmulator
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self._read()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer({"error": "Invalid token"}, 401)
        parts = self.path.strip("/").split("/")
        if self.path == "/api/repos/create":
            return self._create(json.loads(body))
        if self.path == "/api/validate-yaml":
            return self._answer({"warnings": [], "errors": []})
        if parts[-1] == "batch":
            return self._announce_objects(json.loads(body))
        repository = "/".join(parts[2:4])
        if parts[4] == "preupload":
            return self._choose_modes(json.loads(body))
        self.hub.commit(repository, body.splitlines())
        commit = self.hub.commit_id(repository)
        return self._answer({"commitUrl": f"{self.hub.url}/{repository}/commit/{commit}", "commitOid": commit})

    def do_PUT(self) -> None:
        self.hub.objects[self.path.rsplit("/", 1)[-1]] = self._read()
        self._answer({})

    def do_HEAD(self) -> None:
        self._serve_file()

    def do_GET(self) -> None:
        if not self.path.startswith("/api/"):
            return self._serve_file()
        repository = "/".join(self.path.split("/")[3:5])
        if repository not in self.hub.files:
            return self._answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        siblings = [{"rfilename": path} for path in sorted(self.hub.files[repository])]
        info = {"_id": "0", "id": repository, "sha": self.hub.commit_id(repository), "siblings": siblings}
        return self._answer({**info, "private": True, "tags": [], "downloads": 0, "likes": 0})

    def _create(self, request: dict[str, Any]) -> None:
        repository = f"{request['organization']}/{request['name']}"
        if repository in self.hub.files:
            return self._answer({"error": "You already created this model repo"}, 409)
        self.hub.files[repository], self.hub.private[repository] = {}, request["private"]
        return self._answer({"url": f"{self.hub.url}/{repository}"})

    def _choose_modes(self, request: dict[str, Any]) -> None:
        def choose(path: str) -> str:
            return "lfs" if path.endswith(".safetensors") else "regular"

        files = [{"path": file["path"], "uploadMode": choose(file["path"])} for file in request["files"]]
        self._answer({"files": [{**file, "shouldIgnore": False} for file in files]})

    def _announce_objects(self, request: dict[str, Any]) -> None:
        objects = [
            {**entry, "actions": {"upload": {"href": f"{self.hub.url}/objects/{entry['oid']}"}}}
            for entry in request["objects"]
        ]
        self._answer({"transfer": "basic", "objects": objects}, kind="application/vnd.git-lfs+json")

    def _serve_file(self) -> None:
        owner, name, _, commit, *parts = unquote(self.path).strip("/").split("/")
        content = self.hub.files[f"{owner}/{name}"].get("/".join(parts))
        if content is None:
            return self._answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        return self._send(content, 200, headers, "application/octet-stream")

    def _read(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(
        self, content: Any, status: int = 200, headers: dict[str, str] | None = None, kind: str = "application/json"
    ) -> None:
        self._send(json.dumps(content).encode(), status, headers or {}, kind)

    def _send(self, content: bytes, status: int, headers: dict[str, str], kind: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Type": kind, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
