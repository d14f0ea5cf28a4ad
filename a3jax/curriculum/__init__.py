"""Step -> which orders are drawn: stages, the schedule made of them, presets, plateaus. Pure functions."""
