"""Resilience: what stands between a caller and something that fails, hangs, or has too much to do."""
