"""What a model is worth: likelihood in any order, stories, code, questions, continuations."""
