"""Images that are not square, from a space file to what is exported."""

import json
from pathlib import Path

import pytest
import torch

from cvt_nas import search
from cvt_nas.arch import arch_to_dict, cost_of
from cvt_nas.cli import main
from cvt_nas.config import parse_experiment
from cvt_nas.engine import fvcore_cost
from cvt_nas.evaluate import evaluate_model
from cvt_nas.export import export
from cvt_nas.model import CvT, load_model, read_weights, resized_positions, save_model
from cvt_nas.report import write_report
from cvt_nas.supernet import Supernet, begin_supernet, extract, lend_to
from image_folders import write_images

SPACE = """
format: 1
name: wide
space:
  image_size: [16, 25]
  num_classes: 3
  stages:
    - {patch: {kernel: 3, stride: [2, 3]}, embed_dim: [8, 16], depth: 1, num_heads: 1, kv_stride: [1, 2],
       pos_embed: true}
    - {patch: {kernel: 3, stride: 2}, embed_dim: 16, depth: [1, 2], num_heads: 2, projection: [dw_bn, avg]}
data: {dataset: imagefolder, num_workers: 0, search_fraction: 0.25}
training: {epochs: 1, batch_size: 8, lr: 1.0e-3}
supernet: {epochs: 1, batch_size: 8, lr: 1.0e-3}
search: {trials: 2, candidates: 4, weights: supernet, sampler: random, scheduler: none, seed: 0}
"""


@pytest.mark.usefixtures("two_cpus")
def test_a_search_with_a_supernet_finds_networks_for_images_that_are_not_square(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "data" / "train")
    write_images(tmp_path / "data" / "test", num=4)
    experiment = parse_experiment(SPACE, "wide.yaml")
    run = search(experiment, out=tmp_path / "run", data=tmp_path / "data", cpus=1, gpus=0)
    best = run.pick("best")
    folder, model = run.model_path(best.arch_id), load_model(run.model_path(best.arch_id))
    assert arch_to_dict(best.arch)["image_size"] == [16, 25]
    assert json.loads((folder / "preprocessing.json").read_text())["image_size"] == [16, 25]
    assert best.cost == experiment.space.cost(experiment.space.encode(best.arch))
    assert cost_of(model.arch) == fvcore_cost(model)

    write_report(run)
    height, width = best.arch.grids[0]
    assert main(["profile", f"{run.path}:best"]) == 0
    assert f"{height}x{width} tokens" in capsys.readouterr().out
    assert main(["profile", f"{run.path}:best", "--image-size", "32x50", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["image_size"], told["params"] > best.cost.params) == ([32, 50], True)

    export(run, "best", tmp_path / "model")
    assert "cropped to 16 x 25" in (tmp_path / "model" / "README.md").read_text()
    found = evaluate_model(tmp_path / "model", data=tmp_path / "data", device="cpu")
    assert (found.top1, found.image_size) == (pytest.approx(run.test_accuracies()[best.arch_id]), (16, 25))
    assert evaluate_model(tmp_path / "model", data=tmp_path / "data", image_size=24, device="cpu").image_size == 24


def test_a_supernet_begins_with_positions_of_square_images_stretched(tmp_path: Path) -> None:
    space = parse_experiment(SPACE, "wide.yaml").space
    square = CvT(space.largest.with_image_size(32))
    save_model(square, tmp_path)
    lent, _ = lend_to(space, read_weights(tmp_path), classes=("cat", "dog", "fish"))
    supernet = Supernet(space)
    begin_supernet(supernet, lent)
    own = square.get_parameter("stage0.patch_embed.pos_embed")
    assert torch.equal(supernet.shared.get_parameter("stage0.patch_embed.pos_embed"), resized_positions(own, (8, 13)))
    assert extract(supernet, space.smallest)(torch.zeros(2, *space.smallest.image_shape)).shape == (2, 3)
