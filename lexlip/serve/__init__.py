"""`lexlip serve`: an HTTP service over an index and a model. How to use it: docs/SERVING.md.

Needs the extra `serve` (FastAPI, uvicorn, prometheus_client). The rest of lexlip imports only its parser, `serve.cli`.
"""
