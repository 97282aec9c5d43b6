"""Programs that show shmrt on real input and check their own answers."""
