"""A local HTTP service that completes and fills texts, many together."""
