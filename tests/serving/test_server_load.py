"""Shorter versions of `tests/long/test_server.py`, with fixed seeds."""

from __future__ import annotations

import pytest
from hostile_uploads import make_uploads, read_hostile_files
from resident_memory import read_resident_mb
from server_load import MAX_GROWTH_MB, MAX_HOSTILE_MB, send_hostile, send_ordinary

pytestmark = pytest.mark.slow


def test_requests_made_from_the_description_are_answered_as_described(search_server):
    pytest.importorskip("schemathesis", reason="needs schemathesis (the test extra)")
    from api_fuzzing import fuzz_api

    answers = fuzz_api(search_server.url, cases=100, seed=0)
    assert sum(answers.values()) >= 60
    statuses = {answer.rpartition(" ")[2] for answer in answers}
    assert statuses <= {"200", "400", "404", "405", "413", "415", "422"} and {"200", "422"} <= statuses


def test_hostile_uploads_neither_stop_the_server_nor_fill_its_memory(search_server):
    files = [content for content in read_hostile_files() if len(content) < 100_000]
    result = send_hostile(search_server, make_uploads(75, seed=1, files=files))
    assert sum(result.statuses.values()) == 75 and result.statuses[422] > 30
    assert result.slowest < 20 and result.growth_mb < MAX_HOSTILE_MB


@pytest.mark.skipif(not read_resident_mb(), reason="needs /proc (Linux)")
def test_the_memory_of_the_server_does_not_grow(search_server):
    send_ordinary(search_server, 400)
    before = search_server.resident_mb
    answers = send_ordinary(search_server, 400)
    assert sum(answers.values()) == 400 and answers["/v1/search 200"] == 80
    assert search_server.resident_mb - before < MAX_GROWTH_MB
