"""The ready-made health checks, by their short name: `from shmrt import checks`."""

from __future__ import annotations

from shmrt.guard.checks import breaker, disk_space, memory, pool, ring, shared_memory

__all__ = ["breaker", "disk_space", "memory", "pool", "ring", "shared_memory"]
