"""A search from Python, cell by cell: digits that ship with scikit-learn, a few minutes on two CPU cores.

Opens as a notebook wherever `# %%` begins a cell (VS Code, PyCharm, Spyder, Jupytext), and runs as a script:

    python examples/digits.py [FOLDER]
"""

# %% A space: which networks there are, and what the cheapest and the most expensive cost
import sys
from pathlib import Path

import cvt_nas

ROOT = Path(__file__).parent.parent if "__file__" in globals() else Path.cwd()
folder = Path(sys.argv[1] if len(sys.argv) > 1 else "results/digits_example")

experiment = cvt_nas.load_experiment(ROOT / "search_spaces" / "digits.yaml")
least, greatest = experiment.space.cost_range
print(f"{experiment.space.size:,} networks of {least.params:,} to {greatest.params:,} parameters")


# %% The search, followed as it goes. Each event says what has happened: here, which trials have ended
def show(event: object) -> None:
    if isinstance(event, cvt_nas.TrialResult):
        accuracy = "-" if event.accuracy is None else f"{event.accuracy:.4f}"
        print(f"trial {event.number}: {event.status} after {event.epochs} epochs, accuracy {accuracy}", flush=True)


run = cvt_nas.search(experiment, out=folder / "run", trials=8, cpus=2, gpus=0, callbacks=[show])

# %% The front, and every trial, as pandas tables; and the page of the run
front = cvt_nas.front_frame(run)
print(front[["arch_id", "accuracy", "test_accuracy", "params", "flops"]].to_string(index=False))
print(cvt_nas.trials_frame(run).groupby("status")["seconds"].sum())
cvt_nas.write_report(run)
print(f"the page: {run.path / 'report.html'}")

# %% A model: the knee of the front, as a torch module in eval mode
cvt_nas.export_model(run, "knee", folder / "model")
model = cvt_nas.load_model(folder / "model")
print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters")
