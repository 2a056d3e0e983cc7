"""Searches on clusters: two nodes, a head that `ray start` started, the client, and SLURM."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray._private import ray_constants
from ray.cluster_utils import Cluster

from conftest import SPACES, small_digits
from cvt_nas import search
from cvt_nas.arch import arch_to_dict
from cvt_nas.config import Experiment, load_experiment, parse_experiment
from cvt_nas.errors import ResourceError
from cvt_nas.launch.private import on_loopback
from cvt_nas.run import RunFolder
from test_searching import start_search, wait_for_results

EPOCH = {"  epochs:": "  epochs: 1", "  warmup_epochs:": "  warmup_epochs: 0"}


def test_a_search_joins_a_cluster_of_two_nodes_by_its_address(tmp_path: Path) -> None:
    line = "search: {trials: 2, sampler: random, scheduler: none}"
    experiment = parse_experiment(small_digits(**EPOCH, **{"search:": line}), "small.yaml")
    with on_loopback():
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        try:
            cluster.add_node(num_cpus=1)
            cluster.wait_for_nodes()
            run = search(experiment, out=tmp_path / "run", address=cluster.address)
        finally:
            cluster.shutdown()
    resources = run.manifest["resources"]
    assert (resources["num_nodes"], resources["num_slots"]) == (2, 2)
    assert [result.number for result in run.results()] == [0, 1]


def test_an_address_where_no_cluster_answers_is_one_line(small: Experiment, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"--address 127.0.0.1:1: no Ray cluster answers \("):
        search(small, out=tmp_path / "run", address="127.0.0.1:1")
    assert not (tmp_path / "run").exists()


@contextlib.contextmanager
def ray_head() -> Iterator[tuple[str, str, dict[str, str]]]:
    """A head that `ray start` started: its address, that for Ray's client, and the environment to join it in."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        port, client_port = one.getsockname()[1], two.getsockname()[1]
    environment = {**os.environ, ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0", "PYTHONWARNINGS": "ignore"}
    head = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2", f"--port={port}",
         f"--ray-client-server-port={client_port}", "--node-ip-address=127.0.0.1", "--include-dashboard=false",
         "--disable-usage-stats"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (answers(port) and answers(client_port)):
            time.sleep(0.2)
        yield f"127.0.0.1:{port}", f"ray://127.0.0.1:{client_port}", environment
    finally:
        head.terminate()
        head.wait(30)


def answers(port: int) -> bool:
    with socket.socket() as asked:
        return asked.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow  # the client's search is one, too
def test_the_command_searches_on_a_head_that_ray_start_started(tmp_path: Path) -> None:
    space, out = tmp_path / "small.yaml", tmp_path / "run"
    space.write_text(small_digits(**{"search:": "search: {trials: 2, sampler: random, scheduler: none}"}))
    with ray_head() as (address, _, environment):
        process = start_search(space, out, "--address", address, env=environment)
        output, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
    assert [result.status for result in RunFolder.open(out).results()] == ["complete"] * 2
    assert "Pareto front" in output
    assert "trials 2/2" in error


@pytest.mark.slow
def test_a_search_through_ray_s_client_stops_in_order_and_goes_on(tmp_path: Path) -> None:
    space, out = tmp_path / "small.yaml", tmp_path / "run"
    space.write_text(small_digits(**{"search:": "search: {trials: 5, sampler: random, scheduler: none}"}))
    with ray_head() as (_, address, environment):
        process = start_search(space, out, "--address", address, env=environment)
        wait_for_results(out, 1, process)
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=120)
        assert process.returncode == 130, error
        assert f"of 5 trials are done and kept. Go on with: cvt-nas search --space {space} --out {out} " in error
        kept = RunFolder.open(out).results()
        assert 1 <= len(kept) < 5
        process = start_search(space, out, "--address", address, "--resume", env=environment)
        output, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
    results = RunFolder.open(out).results()
    assert set(kept) <= set(results)
    assert [(result.number, result.status) for result in results] == [(number, "complete") for number in range(5)]
    assert "Pareto front" in output
    assert "trials 5/5" in error


@pytest.mark.slow
def test_a_search_through_ray_s_client_takes_what_another_process_asks_and_stops_when_it_is_asked(
    tmp_path: Path,
) -> None:
    space, out = tmp_path / "small.yaml", tmp_path / "run"
    line = "search: {trials: 3, sampler: random, scheduler: none}"
    space.write_text(small_digits(**EPOCH, **{"search:": line}))
    arch = load_experiment(space).space.smallest
    (tmp_path / "arch.json").write_text(json.dumps(arch_to_dict(arch)))

    def ask(*words: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "cvt_nas.cli", "ask", str(out), *words], env=environment, text=True, check=True,
            stdout=subprocess.PIPE,
        ).stdout  # fmt: skip

    with ray_head() as (_, address, environment):
        process = start_search(space, out, "--address", address, env=environment)
        wait_for_results(out, 1, process)
        ask("--trials", "60")
        ask("--try", str(tmp_path / "arch.json"))
        wait_for_results(out, 5, process)
        ask("--stop")
        _, error = process.communicate(timeout=120)
        asked = ask()
    assert process.returncode == 130, error
    assert "somebody asked for it: stopping in order" in error
    results = RunFolder.open(out).results()
    assert f"{len(results)} of 60 trials are done and kept. Go on with: cvt-nas search --space {space}" in error
    (number,) = [result.number for result in results if result.arch == arch]
    raised, tried, stopped = asked.splitlines()
    assert raised.endswith("60 trials in all: done")
    assert tried.endswith(f"try {arch.id}: taken by trial {number}")
    assert stopped.endswith("stop in order: done")


@pytest.mark.slow
def test_a_folder_that_the_cluster_does_not_share_is_refused_before_a_search_begins(tmp_path: Path) -> None:
    space, here = tmp_path / "small.yaml", tmp_path / "here"
    space.write_text(small_digits(**EPOCH))
    here.mkdir()
    with ray_head() as (_, address, environment):
        words = [sys.executable, "-m", "cvt_nas.cli", "search", "--space", str(space), "--address", address]
        done = subprocess.run(
            [*words, "--out", "/proc/self/cwd/run"],  # which each process sees as another folder
            cwd=here, env={**environment, "PYTHONWARNINGS": "ignore"}, text=True, capture_output=True, check=False,
        )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "cvt-nas: --out /proc/self/cwd/run: is not the same folder here and on the cluster" in done.stderr
    assert not list(here.iterdir())


# what stands in for SLURM's commands and, to stay on this machine's loopback, around Ray's
SHIMS = {
    "srun": 'while [[ $1 == -* ]]; do case $1 in -w | -x) shift 2 ;; *) shift ;; esac; done; exec "$@"',
    "scontrol": 'if [ "$1" = show ]; then printf "127.0.0.1\\n127.0.0.1\\n"; else echo "$@" >> "$REQUEUED"; fi',
    "ray": (
        'if [ "$1" = start ]; then set -- "$@" --node-ip-address=127.0.0.1 --num-cpus=1 --disable-usage-stats; fi\n'
        f"exec {sys.executable} -c 'import sys\n"
        "from ray._private import ray_constants, services\n"
        'ray_constants.ENABLE_RAY_CLUSTER = sys.argv[1:3] == ["start", "--address"]\n'
        "services.resolve_ip_for_localhost = lambda host: host\n"
        "from ray.scripts.scripts import main\n"
        'main()\' "$@"'
    ),
    "cvt-nas": f'exec {sys.executable} -m cvt_nas.cli "$@"',
}


@pytest.mark.slow
def test_the_slurm_script_of_the_docs_searches_on_two_nodes_stops_before_its_time_is_over_and_queues_again(
    tmp_path: Path,
) -> None:
    text = (SPACES.parent / "docs" / "guides" / "clusters.md").read_text()
    script = text[text.index("#!/bin/bash") :].split("```")[0]
    (tmp_path / "bin").mkdir()
    for name, body in SHIMS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "cvt13.yaml").write_text(
        small_digits(**{"search:": "search: {trials: 6, sampler: random, scheduler: none}"})
    )
    out, requeued = tmp_path / "cvt13", tmp_path / "requeued"
    environment = {
        **os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_NNODES": "2", "SLURM_JOB_ID": "7", "REQUEUED": str(requeued), "PYTHONWARNINGS": "ignore",
        ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0",
    }  # fmt: skip

    def start_job() -> subprocess.Popen[str]:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        job = tmp_path / "job.sh"
        job.write_text(script.replace("/shared/cvt13", str(out)).replace("6379", port))
        return subprocess.Popen(
            ["bash", str(job)], cwd=tmp_path, env=environment, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def end_job(job: subprocess.Popen[str], seconds: float) -> str:
        """Waits for the script; then all that it left is killed, as SLURM does."""
        try:
            job.wait(seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job.pid, signal.SIGKILL)
        return job.communicate()[0]

    job = start_job()
    wait_for_results(out, 1, job, end=lambda: end_job(job, 0))
    os.kill(job.pid, signal.SIGTERM)  # to the script alone, by `--signal=B:TERM@300`
    said = end_job(job, 120)
    assert requeued.read_text() == "requeue 7\n", said
    assert "of 6 trials are done and kept" in said
    kept = RunFolder.open(out).results()
    assert 1 <= len(kept) < 6
    job = start_job()
    said = end_job(job, 240)
    assert job.returncode == 0, said
    run = RunFolder.open(out)
    assert set(kept) <= set(run.results())
    assert [result.number for result in run.results()] == list(range(6))
    assert run.manifest["resources"]["num_nodes"] == 2
