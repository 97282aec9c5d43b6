"""`python -m shmrt`: the door to the command line."""

from __future__ import annotations

from shmrt.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
