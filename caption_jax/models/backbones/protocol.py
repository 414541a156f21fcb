"""What the captioner needs of an image backbone, and of the weights that it may start from."""

from __future__ import annotations

from collections.abc import Sequence


def stages_up_to(stage_names: Sequence[str], name: str) -> tuple[str, ...]:
    """The stages from the first to the one called `name`; none for "".

    Raises:
        ValueError: there is no such stage; the message lists the names.
    """
    if name and name not in stage_names:
        raise ValueError(f"there is no stage {name!r}; choose one of {', '.join(stage_names)}")
    return tuple(stage_names[: stage_names.index(name) + 1]) if name else ()
