"""Requests for text, from a command line or from a file of them, and their answers."""
