"""Serving of captions: batches of requests, their limits, and an HTTP server. Requires the `serve` extra for HTTP."""
