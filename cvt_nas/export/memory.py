"""Prints the memory that a network takes in torch. Module `deployed` runs it in a new process."""

import json
import sys

import torch

from cvt_nas.arch import arch_from_dict
from cvt_nas.engine.latency_table import measure_memory
from cvt_nas.latency import Deployment

if __name__ == "__main__":
    asked = json.load(sys.stdin)
    deployment = Deployment.from_json(asked["deployment"])
    print(json.dumps(measure_memory(arch_from_dict(asked["arch"]), deployment, torch.device("cpu"))))
