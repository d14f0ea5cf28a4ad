"""Filled texts to look at: live in a terminal, or afterwards as a page."""
