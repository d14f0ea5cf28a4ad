"""The PyTorch twin: three files, copied as they are into every exported folder, that need torch and transformers only."""
