"""Stands in for `a3jax train` in tests of how runs are started: `python stand_in.py PARENT CONFIG`.

Every step is saved; the NLL is `optimizer.peak_lr` and falls with every step. A rate above 1 fails at the third step.
"""

import json
import os
import sys
import time
from pathlib import Path

file = Path(sys.argv[2])
config, run = json.loads(file.read_text()), file.parent
rate, steps = config["optimizer"]["peak_lr"], sum(stage["steps"] for stage in config["curriculum"])
(run / "model.json").write_text(json.dumps(config["model"]))
saved = sorted(int(path.name) for path in (run / "checkpoints").glob("*"))
with (run.parents[1] / "times").open("a") as times, (run / "metrics.jsonl").open("a") as metrics:
    times.write(f"+ {run.name} {os.environ.get('CUDA_VISIBLE_DEVICES')}\n")
    times.flush()
    for step in range(saved[-1] if saved else 0, (config["train"]["stop_at"] or steps) + 1):
        time.sleep(0.02)
        if rate > 1 and step == 3:
            print("something\nbroke")
            times.write(f"- {run.name}\n")
            sys.exit(3)
        metrics.write(json.dumps({"step": step, "nll/ar": rate - step, "nll/random_4": rate - 2 * step}) + "\n")
        metrics.flush()
        (run / "checkpoints" / str(step)).mkdir(parents=True, exist_ok=True)
    times.write(f"- {run.name}\n")
