"""A local HTTP service that completes and fills texts, in batches."""
