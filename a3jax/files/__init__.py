"""What lies on disk: strict JSON, folders that are complete or not there, lines that can be resumed."""
