"""The server on a real socket: signals, clients that leave, and addresses that cannot be used."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from fake_model import FakeModel, wait_for

from caption_jax.errors import ConfigError, MissingFileError
from caption_jax.serving.caption_service import ServiceSettings
from caption_jax.serving.http_app import make_app
from caption_jax.serving.http_server import Address, AddressError, read_token, run_server
from caption_jax.serving.upload_limits import UploadLimits

ROOT = Path(__file__).resolve().parents[2]
# A server whose batches take half a second. It prints its URL.
SCRIPT = """
import sys, time
sys.path[:0] = sys.argv[1:3]
from fake_model import FakeModel
from caption_jax.serving.caption_service import ServiceSettings
from caption_jax.serving.http_app import make_app
from caption_jax.serving.http_server import Address, run_server
from caption_jax.serving.upload_limits import UploadLimits
model = FakeModel()
model.before_batch = lambda: time.sleep(0.5)
app = make_app(model, ServiceSettings((1,), max_wait=0.0), UploadLimits())
run_server(app, Address(port=0), lambda message: print(message, flush=True))
print("stopped", "jax" in sys.modules)
"""


def request(port: int, method: str = "POST", path: str = "/v1/captions") -> tuple[int, dict]:
    """Sends a request and returns the status and the content of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, b"dog" if method == "POST" else None, {"Content-Type": "image/png"})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def wait_until_ready(port: int) -> None:
    wait_for(lambda: request(port, "GET", "/readyz")[0] == 200)


@pytest.mark.usefixtures("unignored_signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_accepted_requests_and_ends_with_status_0(number):
    command = [sys.executable, "-c", SCRIPT, str(ROOT), str(ROOT / "tests" / "serving")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        url = re.fullmatch(r"listening on (http://127.0.0.1:\d+), compiling programs; .*\n", process.stdout.readline())[
            1
        ]
        assert process.stdout.readline() == f"ready: {url}\n"
        port = int(url.rpartition(":")[2])
        wait_until_ready(port)
        answers: list[tuple[int, dict]] = []
        threads = [threading.Thread(target=lambda: answers.append(request(port))) for _ in range(2)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)  # both requests are accepted; the second waits for the batch of the first
        process.send_signal(number)
        for thread in threads:
            thread.join()
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert [status for status, _ in answers] == [200, 200]
    assert process.returncode == 0 and out == "stopped False\n"
    assert f"{number.name}: finishing accepted requests; a second signal ends at once" in err
    entries = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    assert [entry["status"] for entry in entries if entry["method"] == "POST"] == [200, 200]
    assert "Traceback" not in err


@pytest.fixture
def served() -> Iterator[tuple[FakeModel, object, int]]:
    """A fake model, its service and the port of a server in a thread."""
    model = FakeModel()
    app = make_app(model, ServiceSettings((1,), max_wait=0.0), UploadLimits(), write=lambda entry: None)
    with Address(port=0).open_socket() as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        port = listener.getsockname()[1]
        wait_until_ready(port)
        yield model, app.state.service, port
        model.gate.set()
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def test_images_of_clients_that_leave_are_removed_from_the_queue(served):
    model, service, port = served
    model.gate.clear()
    clients = []
    for count in (1, 2):
        clients.append(socket.create_connection(("127.0.0.1", port)))
        clients[-1].sendall(
            b"POST /v1/captions HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 3\r\n\r\ndog"
        )
        wait_for(lambda count=count: service.admitted == count)
    wait_for(lambda: service.queue_length == 1)  # the first image is in the running batch
    clients[1].close()
    wait_for(lambda: not service.queue_length)
    model.gate.set()
    assert clients[0].recv(100).startswith(b"HTTP/1.1 200")
    clients[0].close()
    assert request(port)[0] == 200 and len(model.batches) == 2


def test_a_failed_compilation_ends_the_server_with_its_error():
    def fail(sizes: list[int]) -> None:
        raise ConfigError("the model cannot be compiled")

    model, messages = FakeModel(), []
    model.warm_up = fail
    app = make_app(model, ServiceSettings((1,)), UploadLimits(), write=lambda entry: None)
    with pytest.raises(ConfigError, match="cannot be compiled"):
        run_server(app, Address(port=0), messages.append)
    assert [message.partition(" http")[0] for message in messages] == ["listening on"]


def test_addresses_that_cannot_be_used_are_reported_in_one_line():
    with Address(port=0).open_socket() as listener:
        port = listener.getsockname()[1]
        with pytest.raises(AddressError, match=rf"cannot listen on 127\.0\.0\.1:{port} \(Address already in use\)"):
            Address(port=port).open_socket()
    with pytest.raises(AddressError, match=r"cannot listen on no\.such\.host\.invalid:0 \("):
        Address("no.such.host.invalid", 0).open_socket()


def test_tokens_are_read_from_a_file(tmp_path):
    path = tmp_path / "token"
    with pytest.raises(MissingFileError, match=r"--token_file=.*token: cannot be read \(.*No such file"):
        read_token(str(path))
    path.write_text("  a-long-secret-token\n")
    assert read_token(str(path)) == "a-long-secret-token"
    for content in ("short", "two words that are long enough", ""):
        path.write_text(content)
        with pytest.raises(ConfigError, match="must contain one word of at least 16 characters"):
            read_token(str(path))
