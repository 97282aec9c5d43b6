"""Resilience: circuit breakers, bulkheads, rate limits, fallbacks and health checks.

Each is usable alone in one process, and shared by all processes of a runtime inside one.
"""
