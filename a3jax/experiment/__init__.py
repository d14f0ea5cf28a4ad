"""What an experiment is: the file that describes it, which values cannot be, and sweeps made of several."""
