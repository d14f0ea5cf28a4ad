"""Generation in any order, from a cache in generation order."""
