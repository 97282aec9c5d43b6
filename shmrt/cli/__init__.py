"""The command line: `python -m shmrt`."""
