"""`--mode=serve`: captions images and searches an index over HTTP."""

from __future__ import annotations

import contextlib

from absl import app, flags

from caption_jax.cli.command_flags import spec_from_flags
from caption_jax.cli.progress_flags import display_from_flags
from caption_jax.retrieval.commands import get_index_folder
from caption_jax.serving.caption_service import ServiceSettings
from caption_jax.serving.required_packages import require_packages
from caption_jax.serving.served_model import ServedModel
from caption_jax.serving.stored_images import StoredImages
from caption_jax.serving.upload_limits import UploadLimits


def run(options: flags.FlagValues, arguments: list[str]) -> int:
    """Serves a model until a signal stops it; returns the exit status.

    Raises:
        UsageError: a flag has an invalid value.
        WorkdirError: the index was built with another model, or the model cannot search.
    """
    require_packages()
    from caption_jax.serving.http_app import make_app  # imports them
    from caption_jax.serving.http_server import Address, read_token, run_server

    token = read_token(options.token_file) if options.token_file else ""
    sizes = _read_numbers(options, "batch_sizes")
    if not sizes:
        raise app.UsageError("--batch_sizes must contain at least one size, such as 1,4,16")
    if options.max_images > options.max_queue:
        raise app.UsageError(f"--max_images={options.max_images} must not exceed --max_queue={options.max_queue}")
    if options.image_folder and not options.index:
        raise app.UsageError("--image_folder requires --index, the index of these images")
    settings = ServiceSettings(sizes, options.max_wait_ms / 1000, options.max_queue, options.request_timeout)
    limits = UploadLimits(options.max_request_mb * 2**20, options.max_images)
    spec = spec_from_flags(options, "defer")
    with display_from_flags(options, lines=False) as display, display.phase("loading the model"):
        beams = _read_numbers(options, "beams")
        images = StoredImages(options.image_folder, spec.limits) if options.image_folder else None
        model = ServedModel(options.workdir, options.checkpoint, spec.decode, beams, spec.limits, options.weights)
        index = get_index_folder(options.workdir, options.index) if options.index else None
        embedder = model.make_embedder(index, images)
    application = make_app(model, settings, limits, token, embedder=embedder)

    run_server(application, Address(options.host, options.port), _announce)
    return 0


def _announce(message: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads the output any more
        print(message, flush=True)


def _read_numbers(options: flags.FlagValues, name: str) -> tuple[int, ...]:
    """Returns the numbers of a list flag."""
    numbers = []
    for text in options[name].value:
        if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 1024):
            raise app.UsageError(f"--{name}={text}: the values must be whole numbers from 1 to 1024")
        numbers.append(int(text))
    return tuple(numbers)
