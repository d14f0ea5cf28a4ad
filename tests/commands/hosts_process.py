"""Command lines, one after another, in one process; run by test_several_hosts.py, alone or as each of two.

    python hosts_process.py LINES.json [HOST:PORT PROCESS]

Of two processes each runs every line with the place at its end. They meet once, so no line goes on in a child.
"""

import json
import sys
from pathlib import Path

import jax

from a3jax import cli

if __name__ == "__main__":
    jax.config.update("jax_disable_most_optimizations", True)
    cli.continue_in_child = lambda: None
    lines, *place = sys.argv[1:]
    how = []
    if place:
        how = ["--coordinator", place[0], "--processes", "2", "--process", place[1], "--mesh.data", "2", "--mesh.fsdp", "2"]
    for line in json.loads(Path(lines).read_text()):
        cli.main([*line, *how])
