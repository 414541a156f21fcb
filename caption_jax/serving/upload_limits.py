"""Limits on the size of a request."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class UploadLimits:
    """Limits on a request.

    Attributes:
        body_bytes: size of the body.
        images: number of images.
    """

    body_bytes: int = 32 * 2**20
    images: int = 16
