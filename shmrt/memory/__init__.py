"""Effects on bytes: segments, rings, arrays in shared memory."""
