"""placeholder until the twin is known"""
MODEL_TYPE = "a3"
RECORD = "a3_record.json"
def from_hf(config, where): raise NotImplementedError
