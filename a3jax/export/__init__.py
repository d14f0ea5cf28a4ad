"""A checkpoint -> Hugging Face and PyTorch: writing, describing and verifying it."""
