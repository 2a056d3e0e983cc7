"""Searches on a table in place of training, with the same study, rungs and rankings, on a simulated clock."""

from cvt_nas.bench.methods import Method, SearchMethod, Settings, methods_of, metrics_of
from cvt_nas.bench.simulation import Run, Trace, anytime_hypervolume, compare, run_all, simulate
from cvt_nas.bench.summary import plot, summarise
from cvt_nas.bench.table import Table, load_table
from cvt_nas.ready import ready_tables
