"""Work that ends when its client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from input_pipeline.extras import optional_packages

with optional_packages("serving"):
    from starlette.requests import ClientDisconnect
    from starlette.types import Receive

Result = TypeVar("Result")


async def cancel_on_disconnect(work: Coroutine[Any, Any, Result], receive: Receive) -> Result:
    """Returns the result of `work`, which is cancelled if the client closes the connection.

    Args:
        work: work on a request whose body has been read.
        receive: receives the messages of the request.

    Raises:
        ClientDisconnect: the client closed the connection.
    """

    async def wait_for_disconnect() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = asyncio.create_task(work), asyncio.create_task(wait_for_disconnect())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ClientDisconnect
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
