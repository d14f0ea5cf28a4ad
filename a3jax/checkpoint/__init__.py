"""A folder with a model in it: its arrays on disk, its description, and where its weights come from."""
