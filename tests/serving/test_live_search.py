"""Embeddings and searches of a trained model in a real server."""

from __future__ import annotations

import io
import json
import shutil
import signal
from collections.abc import Callable

import jax
import numpy as np
import pytest
from PIL import Image
from server_load import encode_box
from small_run import run_main

import caption_jax
from caption_jax.retrieval.index import ImageIndex
from caption_jax.retrieval.search import Searcher
from caption_jax.serving.embedding_request import EmbeddingProgram, EmbeddingRow
from caption_jax.serving.served_model import ServedModel
from caption_jax.specs import DecodeSpec
from input_pipeline.limits import Limits

pytestmark = pytest.mark.slow


def test_embeddings_are_those_of_the_captioner(search_server, searchable_workdir):
    captioner, texts = caption_jax.load(searchable_workdir), ["a red box", "a green box on the right", "box"]
    answers = search_server.post("/v1/embeddings", {"texts": texts}).json()["embeddings"]
    vectors = np.array([answer["embedding"] for answer in answers])
    np.testing.assert_allclose(vectors, captioner.embed_texts(texts), atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    image = encode_box("blue")
    (answer,) = search_server.post("/v1/embeddings", image, "image/png").json()["embeddings"]
    np.testing.assert_allclose(answer["embedding"], captioner.embed_images([image])[0], atol=1e-4)
    assert search_server.get("/v1/model").json()["embeddings"] == {"dimension": vectors.shape[1]}


def test_searches_give_the_results_of_the_command(search_server, searchable_workdir, index_folders):
    index = ImageIndex(index_folders[0])
    queries = caption_jax.load(searchable_workdir).embed_texts(["a yellow box on the right"])
    expected = Searcher(index.vectors).search(queries, 3)
    results = search_server.post("/v1/search", {"query": "a yellow box on the right", "limit": 3}).json()["results"]
    assert [result["index"] for result in results] == expected.rows[0].tolist()
    np.testing.assert_allclose([result["score"] for result in results], expected.scores[0], atol=1e-4)
    entries = index.at([result["index"] for result in results])
    assert [result["caption"] for result in results] == [entry.caption for entry in entries]
    assert results[0]["name"] == "yellow.png"
    (first, *_) = search_server.post("/v1/search", encode_box("green", "right"), "image/png").json()["results"]
    assert first["name"] == "green.png" and first["score"] == pytest.approx(1, abs=1e-3)
    thumbnail = search_server.get(first["image"])
    with Image.open(io.BytesIO(thumbnail.content)) as image:
        assert image.format == "JPEG" and image.size == (48, 36)
    again = search_server.get(first["image"], **{"If-None-Match": thumbnail.headers["ETag"]})
    assert (again.status, again.content) == (304, b"")


def count_compilations(events: list[str]) -> Callable[[], None]:
    """Adds the name of an event to a list whenever JAX compiles a program; returns a function that stops this."""

    def record(name: str, *_: object, **__: object) -> None:
        if name.startswith("/jax/core/compile"):
            events.append(name)

    jax.monitoring.register_event_duration_secs_listener(record)
    return lambda: jax.monitoring.unregister_event_duration_listener(record)


def test_no_number_of_rows_compiles_a_program(searchable_workdir, index_folders, request):
    model = ServedModel(searchable_workdir, "best", DecodeSpec(), (), Limits())
    embedder, compilations = model.make_embedder(index_folders[0]), []
    embedder.warm_up((1, 4))
    request.addfinalizer(count_compilations(compilations))
    pixels, ids = model.load(encode_box()), embedder.encode("a red box " * 50)
    for count, size in ((1, 1), (1, 4), (2, 4), (3, 4), (4, 4)):
        for kind, content in (("images", pixels), ("texts", ids)):
            rows = [EmbeddingRow(content, search=number < count - 1) for number in range(count)]
            results = embedder.run(EmbeddingProgram(kind), rows, size)
            assert [len(result.matches) for result in results] == [4] * (count - 1) + [0]
    assert not compilations
    jax.jit(lambda x: x + 1)(np.float32(1))
    assert compilations, "compilations are not counted"


def test_the_index_of_another_model_is_refused(searchable_workdir, index_folders, tmp_path, capsys):
    other = tmp_path / "index"
    shutil.copytree(index_folders[0], other)
    header = json.loads((other / "index.json").read_text())
    header["model"] = {"step": 31, "weights": "cd" * 32}
    (other / "index.json").write_text(json.dumps(header))
    for folder, message in (
        (other, "was built with a model (step 31, weights cdcdcdcdcdcd) other than"),
        (tmp_path / "nothing", "there is no index in"),
    ):
        arguments = ["--mode=serve", f"--workdir={searchable_workdir}", "--quiet", "--port=0", f"--index={folder}"]
        assert run_main(*arguments, reports_errors=True) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and message in line


@pytest.mark.usefixtures("unignored_signals")
def test_a_signal_ends_the_server_of_an_index(search_server):
    search_server.process.send_signal(signal.SIGTERM)
    assert search_server.process.wait(60) == 0
    assert "Traceback" not in search_server.log.read_text()
