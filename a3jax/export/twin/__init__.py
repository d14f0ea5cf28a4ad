"""The PyTorch twin: four files, copied as they are into every exported folder, that need torch and transformers only."""
