"""A metadata server of a Cloud TPU VM, faked on loopback, and a command that runs as a host of a TPU pod.

Run as a script, this file runs main.py with the remaining arguments on CPU devices, while JAX believes that it runs on
a TPU VM. Everything else is real: JAX queries the server at GCE_METADATA_IP and connects the processes.
"""

from __future__ import annotations

import contextlib
import http.server
import os
import runpy
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_PREFIX = "/computeMetadata/v1/instance/attributes/"


@contextlib.contextmanager
def serve_metadata(attributes: Mapping[str, str]) -> Iterator[str]:
    """Serves attributes of a VM, and the status 404 for all others. Yields the value of GCE_METADATA_IP."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            value = attributes.get(self.path.removeprefix(_PREFIX))
            is_valid = value is not None and self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200 if is_valid else 404)
            self.end_headers()
            self.wfile.write(value.encode() if is_valid else b"not found")

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def make_attributes(host: int, hosts: int) -> dict[str, str]:
    """Returns the attributes of a host of a slice whose hosts all have the address 127.0.0.1."""
    return {
        "agent-worker-number": str(host),
        "worker-network-endpoints": ",".join("unknown:unknown:127.0.0.1" for _ in range(hosts)),
        "tpu-env": f"ACCELERATOR_TYPE: 'v5litepod-{4 * hosts}'\nWORKER_ID: '{host}'",
    }


def main() -> None:
    """Runs main.py as on a TPU VM."""
    sys.path.insert(0, str(ROOT))
    os.environ["JAX_FORCE_TPU_INIT"] = "1"  # read by JAX, which otherwise looks for a TPU
    import jax  # noqa: F401

    from caption_jax.runtime import distributed

    os.environ.pop("TPU_SKIP_MDS_QUERY", None)  # set by JAX, because this machine has no TPU
    distributed.uses_tpu = lambda: True
    sys.argv = [str(ROOT / "main.py"), *sys.argv[1:]]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
