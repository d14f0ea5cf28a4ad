"""Pretrained weights in: Hugging Face folders, GGUF files and the hub, through one table of names."""
