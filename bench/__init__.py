"""Benchmarks: one file per question. `python -m bench run [--smoke] [NAME ...]`; see bench/__main__.py."""
