"""Weights in and out: Hugging Face, GGUF, and the PyTorch twin."""
