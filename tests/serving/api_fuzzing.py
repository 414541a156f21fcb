"""Requests generated from the description of the API of a running server, valid and invalid ones."""

from __future__ import annotations

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
        response = case.call(timeout=60)
        answers[f"{operation.method.upper()} {operation.path} {response.status_code}"] += 1
        if response.status_code in (429, 503):
            return
        case.validate_response(response, checks=CHECKS)

    check()
