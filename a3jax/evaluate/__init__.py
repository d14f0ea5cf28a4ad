"""Likelihood of text in any order."""
