"""Running programs that nobody vouches for, such as those that a model writes."""
