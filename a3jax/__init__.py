"""Any-order, any-subset language models from pretrained autoregressive ones, in JAX (arXiv 2601.13228)."""
