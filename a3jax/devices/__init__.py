"""What a run has to compute with: the mesh, its processes and hosts, signals, and compiled programs."""
