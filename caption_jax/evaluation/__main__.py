"""Former name of `python -m caption_jax.metrics`."""

import sys

from caption_jax.metrics.__main__ import main

if __name__ == "__main__":
    print("python -m caption_jax.evaluation is now python -m caption_jax.metrics", file=sys.stderr)
    sys.exit(main())
