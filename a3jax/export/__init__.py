"""A checkpoint -> Hugging Face, PyTorch, GGUF and adapters alone: writing, describing and verifying it."""
