"""Effects on processes: starting, watching, ending them, and what runs inside a worker."""
