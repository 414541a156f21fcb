"""A server under requests made from its description, hostile uploads, and tens of thousands of ordinary requests.

python -m pytest -n 0 -s -m long tests/long/test_server.py --requests=20000
"""

from __future__ import annotations

import json

import pytest
from hostile_uploads import make_bombs, make_uploads, read_hostile_files
from resident_memory import read_resident_mb
from server_load import MAX_GROWTH_MB, MAX_HOSTILE_MB, send_hostile, send_ordinary

pytestmark = pytest.mark.long

UPLOADS = 500
CASES = 2000


def test_requests_made_from_the_description_are_answered_as_described(search_server, get_option):
    pytest.importorskip("schemathesis", reason="needs schemathesis (the test extra)")
    from api_fuzzing import fuzz_api

    answers = fuzz_api(search_server.url, CASES, get_option("seed"))
    print(json.dumps(answers, indent=2, sort_keys=True))
    assert sum(answers.values()) >= CASES // 2
    assert {answer.rpartition(" ")[2] for answer in answers} <= {"200", "400", "404", "405", "413", "415", "422"}


def test_hostile_uploads_neither_stop_the_server_nor_fill_its_memory(search_server, get_option, shared_cases):
    files = [*read_hostile_files(), *make_bombs()]
    files += [path.read_bytes() for path in sorted(shared_cases.rglob("*")) if path.is_file()]
    result = send_hostile(search_server, make_uploads(UPLOADS, get_option("seed"), files))
    print(result)
    assert sum(result.statuses.values()) == UPLOADS
    assert result.slowest < 30 and result.growth_mb < MAX_HOSTILE_MB


@pytest.mark.skipif(not read_resident_mb(), reason="needs /proc (Linux)")
def test_the_memory_of_the_server_does_not_grow(search_server, get_option):
    count = get_option("requests")
    send_ordinary(search_server, max(count // 10, 400))
    before = search_server.resident_mb
    answers = send_ordinary(search_server, count)
    after = search_server.resident_mb
    print(json.dumps(answers, indent=2, sort_keys=True), f"{before:.0f} MB before, {after:.0f} MB after")
    assert sum(answers.values()) == count and search_server.is_ready
    assert after - before < MAX_GROWTH_MB
