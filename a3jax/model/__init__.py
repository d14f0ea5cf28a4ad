"""The two-stream transformer and its parameters."""
