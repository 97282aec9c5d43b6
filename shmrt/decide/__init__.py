"""Decisions: pure functions of (state, event, now). No clock, no memory, no process is touched here."""
