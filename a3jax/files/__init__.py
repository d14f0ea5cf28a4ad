"""What lies on disk or in a bucket: strict JSON, folders that are complete or not there, lines that can be resumed."""
