"""The coordinator: rounds, the sum of noised updates, the server optimiser, checkpoints, releases."""
