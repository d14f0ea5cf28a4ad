"""Sources of documents: text, JSON lines, Parquet, `datasets`, TFDS and ArrayRecord, on disk or in a bucket.

`opening` turns what a user writes into sources; each other module is one kind, behind the interface of `interface`.
"""
