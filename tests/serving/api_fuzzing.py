"""Requests generated from the description of the API of a running server, valid and invalid ones."""

from __future__ import annotations

import base64
from collections import Counter

import hypothesis
import schemathesis
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from server_load import encode_box

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


def fuzz_api(url: str, cases: int, seed: int) -> Counter[str]:
    """Sends random requests to each path of a server, and checks its answers against its description.

    A status of 429 or 503 is not a failure: a generated request may have to wait.

    Args:
        url: URL of the server.
        cases: number of requests, valid and invalid ones, which are divided among the paths that take parameters.
        seed: random seed.

    Returns:
        The number of answers by method, path and status.

    Raises:
        AssertionError: the server failed, or an answer is not one that is described.
    """
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    with_parameters = [operation for operation in operations if operation.body or len(list(operation.query)) > 0]
    with_parameters += [operation for operation in operations if "{" in operation.path]
    answers: Counter[str] = Counter()
    for operation in operations:
        is_random = operation in with_parameters
        modes = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE) if is_random else (GenerationMode.POSITIVE,)
        for mode in modes:
            count = max(cases // (2 * len(with_parameters)), 1) if is_random else 1
            _fuzz(operation, mode, count, seed, answers)
    return answers


def _fuzz(operation, mode: GenerationMode, count: int, seed: int, answers: Counter[str]) -> None:
    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Case) -> None:
        if mode == GenerationMode.POSITIVE and len(repr(case.body)) % 2:  # half of them, the same ones if repeated
            _insert_image(case)
        response = case.call(timeout=60)
        answers[f"{operation.method.upper()} {operation.path} {response.status_code}"] += 1
        if response.status_code in (429, 503):
            return
        case.validate_response(response, checks=CHECKS)

    check()


def _insert_image(case: Case) -> None:
    """Replaces the random bytes of a valid request by an image that can be read, without options in the query."""
    case.query.clear()
    if isinstance(case.body, dict) and case.media_type == "application/json" and "images" in case.body:
        case.body["images"] = [base64.b64encode(encode_box()).decode()] * len(case.body["images"])
    elif isinstance(case.body, bytes):
        case.body = encode_box()
