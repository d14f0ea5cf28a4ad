"""What an experiment is: the file that describes it, and sweeps made of several."""
