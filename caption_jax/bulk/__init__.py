"""Captioning of collections of any size with Ray: units of work, the worker that captions one, and Parquet files.

`bulk_run` is the entry point. Only `ray_pool` imports Ray.
"""
