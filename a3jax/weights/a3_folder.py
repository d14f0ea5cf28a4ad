"""A two-stream model as a Hugging Face folder."""

MODEL_TYPE = "a3"
RECORD = "a3_record.json"
