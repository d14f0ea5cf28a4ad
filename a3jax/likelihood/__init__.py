"""Exact likelihood in any generation order: the fused loss, the one forward pass that all use, and scoring of tokens."""
