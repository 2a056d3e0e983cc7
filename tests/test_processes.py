"""Processes that end with the one that started them."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

_POOLS = {
    "measuring": "from cvt_nas.plan.measuring import _begin as begin; about = (0, os.getpid(), 600.0)",
    "bench": "from cvt_nas.bench.simulation import _hold as begin; about = (None, None, os.getpid())",
}
_PROGRAM = """
import os, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
{}
if __name__ == "__main__":
    with ProcessPoolExecutor(2, get_context("{}"), begin, about) as pool:
        running = [pool.submit(time.sleep, 1) for _ in range(2)]
        _ = [each.result() for each in running]
        print(*pool._processes, flush=True)
        pool.submit(time.sleep, 600).result()
"""


@pytest.mark.parametrize(("name", "start"), [("measuring", "fork"), ("bench", "spawn")])
def test_processes_end_with_a_parent_that_is_killed(name: str, start: str, tmp_path: Path) -> None:
    program = tmp_path / "pool.py"
    program.write_text(_PROGRAM.format(_POOLS[name], start))
    with subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        children = [Path("/proc") / pid for pid in parent.stdout.readline().split()]
        assert children
        assert all(child.exists() for child in children)
        parent.kill()
    ends = time.monotonic() + 60
    while any(child.exists() for child in children) and time.monotonic() < ends:
        time.sleep(0.1)
    assert not any(child.exists() for child in children)
