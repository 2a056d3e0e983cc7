import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from jsonschema import Draft202012Validator
from PIL import Image
from timm.data.auto_augment import rand_augment_transform

from conftest import SPACES, small_digits
from cvt_nas import config, load_experiment
from cvt_nas.arch import cost_of
from cvt_nas.config import Experiment
from cvt_nas.config.schema import schema
from cvt_nas.data.augment import randaugment_of
from cvt_nas.errors import SpaceFileError
from cvt_nas.ready import ready_spaces, ready_tables

BASE = """\
format: 1
name: digits
space:
  image_size: 8
  num_channels: 1
  num_classes: 10
  stages:
    - patch: {kernel: 3, stride: 1, padding: 1}
      embed_dim: [8, 16, 24]
      depth: 1
      num_heads: [1, 2]
      mlp_ratio: [1.0, 2.0, 4.0]
      kernel_size: [3, 5]
      kv_stride: [1, 2]
    - patch: {kernel: 3, stride: 2, padding: 1}
      embed_dim: [16, 32, 48]
      depth: [1, 2]
      num_heads: [1, 2]
      mlp_ratio: [1.0, 2.0, 4.0]
      kernel_size: [3, 5]
      kv_stride: [1, 2]
    - patch: {kernel: 3, stride: 2, padding: 1}
      embed_dim: [32, 64, 96]
      depth: [1, 2, 3]
      num_heads: [1, 2, 4]
      mlp_ratio: [1.0, 2.0, 4.0]
      kernel_size: 3
      kv_stride: [1, 2]
anchors:
  cvt-like: {embed_dim: [16, 32, 64], depth: [1, 1, 2], num_heads: [1, 2, 4], mlp_ratio: 4.0, kernel_size: 3, kv_stride: 2}
objectives: {accuracy: maximize, params: minimize, flops: minimize}
data: {dataset: digits, search_fraction: 0.25}
training:
  epochs: 18
  batch_size: 64
  lr: 3.0e-3
  warmup_epochs: 2
  weight_decay: 0.05
  label_smoothing: 0.1
  augment: {crop_padding: 1, mixup: 0.2}
search: {trials: 32, sampler: tpe, scheduler: asha, grace_period: 2, reduction_factor: 3, seed: 0}
"""


SCHEMA = Draft202012Validator(schema())


def parse_experiment(text: str, where: str) -> Experiment:
    """The reader's, of a file that the schema takes too."""
    SCHEMA.validate(yaml.safe_load(text))
    return config.parse_experiment(text, where)


def problems_of(text: str) -> list[str]:
    with pytest.raises(SpaceFileError) as error:
        config.parse_experiment(text, "my.yaml")
    return list(error.value.problems)


def base_with(old: str, new: str, count: int = 1) -> str:
    assert old in BASE
    return BASE.replace(old, new, count)


@pytest.mark.parametrize("path", sorted(SPACES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_space_file_loads_with_no_warning(path: Path) -> None:
    experiment = load_experiment(path)
    assert experiment.name == path.stem
    assert experiment.warnings == ()
    assert experiment.anchors
    for arch in experiment.anchor_archs().values():
        assert experiment.space.is_feasible(cost_of(arch))


# Each case: what is replaced in BASE, by what, and the whole message.
CASES = {
    "unknown key": (
        "  warmup_epochs: 2",
        "  warmup_epoch: 2",
        "my.yaml:37: training.warmup_epoch: unknown key; did you mean 'warmup_epochs'?",
    ),
    "unknown key, nothing near": (
        "  warmup_epochs: 2",
        "  zzz: 2",
        "my.yaml:37: training.zzz: unknown key; known here: epochs, batch_size, optimizer, lr, min_lr, schedule, "
        "restarts, decay_fraction, warmup_epochs, warmup_lr, weight_decay, momentum, loss, class_weights, metric, label_smoothing, teacher, teacher_weight, teacher_temperature, drop_path, clip_grad_norm, ema_decay, precision, micro_batch, activation_checkpointing, compile, checkpoint_minutes, augment",
    ),
    "restarts outside the training": (
        "  warmup_epochs: 2",
        "  warmup_epochs: 2\n  restarts: [6, 18]",
        "my.yaml:38: training.restarts: got [6, 18], must lie between warmup_epochs, 2, and epochs, 18",
    ),
    "a rate above the greatest": (
        "lr: 3.0e-3",
        "lr: 3.0e-3\n  min_lr: 1.0",
        "my.yaml:37: training.min_lr: got 1, must not be above lr, 0.003",
    ),
    "unknown section": (
        "data: {dataset",
        "dada: {}\ndata: {dataset",
        "my.yaml:32: dada: unknown key; did you mean 'data'?",
    ),
    "missing key": ("  epochs: 18\n", "", "my.yaml:33: training.epochs: missing"),
    "repeated key": (
        "  epochs: 18\n",
        "  epochs: 18\n  epochs: 19\n",
        "my.yaml:35: training.epochs: repeated, stands on line 34 already",
    ),
    "a number that YAML reads as text": (
        "lr: 3.0e-3",
        "lr: 3e-3",
        'my.yaml:36: training.lr: got "3e-3", must be a number; YAML reads 3e-3 as text, write 3.0e-3',
    ),
    "a word that YAML reads as a truth value": (
        "depth: 1",
        "depth: no",
        "my.yaml:10: space.stages[0].depth: got false, must be a whole number; "
        "YAML reads yes, no, on and off as true and false",
    ),
    "a fraction for a whole number": (
        "depth: [1, 2]",
        "depth: [1, 2.5]",
        "my.yaml:17: space.stages[1].depth[1]: got 2.5, must be a whole number",
    ),
    "options that do not rise": (
        "mlp_ratio: [1.0, 2.0, 4.0]",
        "mlp_ratio: [2.0, 1.0, 4.0]",
        "my.yaml:12: space.stages[0].mlp_ratio: got [2.0, 1.0, 4.0], must rise: [1.0, 2.0, 4.0]",
    ),
    "no options": ("depth: [1, 2]", "depth: []", "my.yaml:17: space.stages[1].depth: got [], must be at least one"),
    "too small a number": (
        "depth: [1, 2]",
        "depth: [0, 2]",
        "my.yaml:17: space.stages[1].depth[0]: got 0, must be at least 1",
    ),
    "a choice of words": (
        "sampler: tpe",
        "sampler: tpee",
        "my.yaml:41: search.sampler: got \"tpee\", must be one of surrogate, tpe, nsga2, gp, random, or MODULE:NAME; did you mean 'tpe'?",
    ),
    "an unknown data set": (
        "dataset: digits",
        "dataset: mnist",
        'my.yaml:32: data.dataset: got "mnist", must be one of digits, fashion-mnist, cifar10, cifar100, npz, npy, '
        "imagefolder, imagenet, table, huggingface, webdataset, hf:NAME, "
        "torchvision:NAME, MODULE:NAME",
    ),
    "a bound on an unknown metric": (
        "objectives:",
        "constraints: {latency: {max: 5}}\nobjectives:",
        "my.yaml:31: constraints.latency: unknown key; did you mean 'latency_ms'?",
    ),
    "an objective in the wrong direction": (
        "flops: minimize",
        "flops: maximize",
        'my.yaml:31: objectives.flops: got "maximize", must be minimize',
    ),
    "heads that do not divide": (
        "num_heads: [1, 2, 4]",
        "num_heads: [1, 5]",
        "my.yaml:25: space.stages[2].num_heads: got 5, must divide every embed_dim of the stage, does not divide 32, 64, 96",
    ),
    "an even kernel": (
        "kernel_size: [3, 5]",
        "kernel_size: [3, 4]",
        "my.yaml:13: space.stages[0].kernel_size: got 4, must be odd",
    ),
    "a stage without tokens": (
        "patch: {kernel: 3, stride: 2, padding: 1}",
        "patch: {kernel: 9, stride: 2, padding: 0}",
        "my.yaml:15: space.stages[1].patch: kernel 9, stride 2, padding 0 leave no token of a grid of 8 x 8 in stage 1",
    ),
    "per_block of a fixed value": (
        "      kernel_size: 3\n",
        "      kernel_size: 3\n      per_block: [kernel_size]\n",
        "my.yaml:28: space.stages[2].per_block: got kernel_size, which is fixed in this stage; give it a list",
    ),
    "an anchor outside the space": (
        "embed_dim: [16, 32, 64], depth",
        "embed_dim: [16, 32, 80], depth",
        "my.yaml:30: anchors.cvt-like.embed_dim: got 80 for stage 2, must be one of 32, 64, 96",
    ),
    "an anchor that lacks a choice": (
        ", kv_stride: 2}",
        "}",
        "my.yaml:30: anchors.cvt-like: lacks kv_stride",
    ),
    "an anchor with an unknown choice": (
        "kv_stride: 2}",
        "kv_stride: 2, kv_strid: 2}",
        "my.yaml:30: anchors.cvt-like.kv_strid: unknown key; did you mean 'kv_stride'?",
    ),
    "a prior of an unknown choice": (
        "search: {",
        "search: {priors: {kv_strid: {2: 3}}, ",
        "my.yaml:41: search.priors.kv_strid: unknown key; did you mean 'kv_stride'?",
    ),
    "a prior of an option that there is not": (
        "search: {",
        "search: {priors: {embed_dim: {80: 3}}, ",
        "my.yaml:41: search.priors.embed_dim.80: is no option here, must be one of 8, 16, 24, 32, 48, 64, 96",
    ),
    "a prior that is no weight": (
        "search: {",
        "search: {priors: {kv_stride: {2: often}}, ",
        'my.yaml:41: search.priors.kv_stride.2: got "often", must be a number above 0',
    ),
    "a prior of an option that is written in two ways": (
        "search: {",
        "search: {priors: {kv_stride: {2: 3, 2.0: 5}}, ",
        "my.yaml:41: search.priors.kv_stride.2.0: repeated, is the option 2 too",
    ),
    "a prior of a stage that has no choice": (
        "search: {",
        "search: {priors: {depth: [{1: 3}, {}, {}]}, ",
        "my.yaml:41: search.priors.depth[0]: is fixed in this stage, and leaves nothing to believe; write {}",
    ),
    "priors of too few stages": (
        "search: {",
        "search: {priors: {kv_stride: [{2: 3}, {2: 3}]}, ",
        "my.yaml:41: search.priors.kv_stride: got 2 sections, must be one, or one for each of 3 stages",
    ),
    "an anchor that breaks a constraint": (
        "objectives:",
        "constraints: {params: {max: 100_000}}\nobjectives:",
        "my.yaml:30: anchors.cvt-like: has 146_122 params, outside constraints.params",
    ),
    "constraints that nothing meets": (
        "objectives:",
        "constraints: {params: {max: 16_000}}\nobjectives:",
        "my.yaml:31: constraints.params.max: got 16_000, the space begins at 16_898",
    ),
    "constraints that contradict": (
        "objectives:",
        "constraints: {params: {min: 9, max: 8}}\nobjectives:",
        "my.yaml:31: constraints.params: got min 9 above max 8",
    ),
    "warm-up as long as the training": (
        "warmup_epochs: 2",
        "warmup_epochs: 18",
        "my.yaml:37: training.warmup_epochs: got 18, must be below epochs, 18",
    ),
    "an odd batch for mixup": (
        "batch_size: 64",
        "batch_size: 63",
        "my.yaml:35: training.batch_size: got 63, must be even for mixup and cutmix",
    ),
    "weights that are not there": (
        "search: {",
        "search: {weights: supernet, ",
        "my.yaml:41: search.weights: got supernet, needs a section supernet, which says how it is trained",
    ),
    "a word for top that is none": (
        "search: {",
        "search: {confirm: {top: knee, seeds: 3}, ",
        'my.yaml:41: search.confirm.top: got "knee", must be front, or a whole number of at least 1',
    ),
    "no architectures to confirm": (
        "search: {",
        "search: {confirm: {top: 0}, ",
        "my.yaml:41: search.confirm.top: got 0, must be front, or a whole number of at least 1",
    ),
    "a truth value for top": (
        "search: {",
        "search: {confirm: {top: yes}, ",
        "my.yaml:41: search.confirm.top: got true, must be front, or a whole number of at least 1",
    ),
    "a runtime without int8 to confirm in": (
        "search: {",
        "search: {confirm: {as: onnxruntime}, ",
        'my.yaml:41: search.confirm.as: got "onnxruntime", must be one of onnxruntime-int8, openvino-int8',
    ),
    "no seeds to confirm with": (
        "search: {",
        "search: {confirm: {top: 5, seeds: 0}, ",
        "my.yaml:41: search.confirm.seeds: got 0, must be at least 1",
    ),
    "an unknown key of confirm": (
        "search: {trials: 32,",
        "search:\n  confirm:\n    top: front\n    seed: 3\n  trials: 32\n#",
        "my.yaml:44: search.confirm.seed: unknown key; did you mean 'seeds'?",
    ),
    "confirm as a number": (
        "search: {",
        "search: {confirm: 3, ",
        "my.yaml:41: search.confirm: got 3, must be a section with keys of its own",
    ),
    "not YAML": ("format: 1", "format: [1", "my.yaml:2: not YAML: expected ',' or ']', but got ':'"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_in_a_file_is_named_with_its_line(case: str) -> None:
    old, new, message = CASES[case]
    found = problems_of(base_with(old, new))
    assert any(problem == message or problem.startswith(message + ";") for problem in found), found


def test_all_the_problems_of_a_file_are_listed_at_once_by_line() -> None:
    text = base_with("lr: 3.0e-3", "lr: 3e-3").replace("sampler: tpe", "sampler: x").replace("format: 1", "format: 2")
    lines = [int(problem.split(":")[1]) for problem in problems_of(text)]
    assert lines == [1, 36, 41]


def test_a_repeated_key_does_not_hide_the_other_problems() -> None:
    text = base_with("  epochs: 18\n", "  epochs: 18\n  epochs: 18\n").replace("lr: 3.0e-3", "lr: -1.0")
    assert problems_of(text) == [
        "my.yaml:35: training.epochs: repeated, stands on line 34 already",
        "my.yaml:37: training.lr: got -1.0, must be above 0",
    ]


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SpaceFileError, match=r"nothing.yaml: cannot be read: No such file or directory"):
        load_experiment(tmp_path / "nothing.yaml")


def test_a_ready_space_is_found_by_its_name_wherever_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = [path.stem for path in sorted(SPACES.glob("*.yaml"))]
    assert list(ready_spaces()) == names
    for name in names:
        assert load_experiment(name).text == (SPACES / f"{name}.yaml").read_text()
    (tmp_path / "digits").mkdir()
    assert load_experiment("digits").text == (SPACES / "digits.yaml").read_text(), "a folder is no space file"
    (tmp_path / "cvt13").write_text(small_digits())
    assert load_experiment("cvt13").text == small_digits(), "a file comes first"
    with pytest.raises(SpaceFileError, match=r"cvt31: .*, and no ready space has this name; did you mean 'cvt13'\?"):
        load_experiment("cvt31")


@pytest.mark.slow  # pip makes an environment to build in
def test_an_installed_package_has_the_ready_spaces_and_tables(tmp_path: Path) -> None:
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(tmp_path),
        str(SPACES.parent),
    ]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {f"cvt_nas/search_spaces/{path.name}" for path in SPACES.glob("*.yaml")} <= held
    assert {f"cvt_nas/tables/{name}{end}" for name in ready_tables() for end in (".parquet", ".yaml")} <= held
    assert "cvt_nas/tables/README.md" in held


def test_an_empty_file_says_what_it_must_hold() -> None:
    assert problems_of("") == ["my.yaml:1: must hold the keys format, name, space, data, training"]


def test_settings_without_effect_are_named() -> None:
    text = base_with("  lr: 3.0e-3", "  lr: 3.0e-3\n  momentum: 0.8")
    assert parse_experiment(text, "my.yaml").warnings == (
        "my.yaml:37: training.momentum: has no effect: AdamW has none",
    )


def test_settings_of_the_labels_have_no_effect_on_a_loss_of_ones_own() -> None:
    text = base_with("  lr: 3.0e-3", "  lr: 3.0e-3\n  loss: my_parts:loss\n  class_weights: balanced")
    assert parse_experiment(text, "my.yaml").warnings == (
        "my.yaml:41: training.label_smoothing: has no effect: my_parts:loss does without",
        "my.yaml:38: training.class_weights: has no effect: my_parts:loss does without",
    )


def test_ingredients_of_a_supernet_that_do_nothing_are_named() -> None:
    text = base_with("kernel_size: [3, 5]", "kernel_size: 3", 2).replace(
        "search: {",
        "supernet:\n  {epochs: 2, batch_size: 64, lr: 1.0e-3, num_random: 0, distillation: none, kernel_maps: true,\n"
        "   distillation_weight: 0.5, distillation_temperature: 2, distil_from: averaged, ema_decay: 0,\n"
        "   sampling: flops, own_norms: [kv_stride, kernel_size], own_convs: [patch_stride],\n"
        "   opening: {patch_kernel: 1}}\n"
        "search: {weights: supernet, candidates: 40, ",
    )
    assert [warning.partition("supernet.")[2] for warning in parse_experiment(text, "my.yaml").warnings] == [
        "distillation_weight: has no effect: distillation is none",
        "distillation_temperature: has no effect: distillation is none",
        "distil_from: has no effect: distillation is none",
        "sampling: has no effect: num_random is 0",
        "kernel_maps: has no effect: the space has no choice of kernel_size",
        "own_norms: has no effect: the space has no choice of kernel_size",
        "own_convs: has no effect: the space has no choice of patch_stride",
        "opening: has no effect: the space has no choice of patch_kernel",
    ]
    text = base_with("search: {", "supernet:\n  {epochs: 2, batch_size: 64, lr: 1.0e-3, sandwich: false, num_random: 4, "
                     "distillation: none,\n   drop_path: 0.1, sampling: front, largest_weight: 2, extremes: sizes}\n"
                     "search: {weights: supernet, candidates: 40, ")  # fmt: skip
    assert [warning.partition("supernet.")[2] for warning in parse_experiment(text, "my.yaml").warnings] == [
        "drop_path: has no effect: without sandwich there is no largest subnet",
        "sampling: has no effect: without sandwich no losses are compared, and front is as flops",
        "largest_weight: has no effect: without sandwich there is no largest subnet",
        "extremes: has no effect: without sandwich there is no largest subnet",
    ]
    on_all = text.replace("drop_path: 0.1", "drop_path: 0.1, drop_path_on_all: true").replace("front", "flops")
    on_all = on_all.replace(", largest_weight: 2, extremes: sizes", "")
    assert not parse_experiment(on_all, "my.yaml").warnings
    text = base_with("search: {", "supernet: {epochs: 2, batch_size: 64, lr: 1.0e-3, drop_path: 0.1, compile: graph, "
                     "extremes: sizes}\nsearch: {weights: supernet, candidates: 40, ")  # fmt: skip
    assert [warning.partition("supernet.")[2] for warning in parse_experiment(text, "my.yaml").warnings] == [
        "compile: has no effect: with extremes: sizes, all subnets change from step to step",
        "drop_path: has no effect: extremes: sizes draws the strides of the largest subnet",
    ]


def test_learning_from_averaged_weights_needs_weights_that_are_averaged() -> None:
    text = base_with("search: {", "supernet: {epochs: 2, ema_decay: 0, distil_from: averaged}\n"
                     "search: {weights: supernet, candidates: 40, ")  # fmt: skip
    assert [problem.partition("supernet.")[2] for problem in problems_of(text)] == [
        "distil_from: got averaged, needs averaged weights, but ema_decay is 0"
    ]


@pytest.mark.parametrize(
    "policy",
    ["rand", "rand-m9", "rand-m9-mstd0.5-inc1", "rand-n3-p0.25", "rand-m15-mmax30-mstd101", "rand-tweights-n15",
     "rand-t3a-n20", "rand-t3aw-n14-inc0", "rand-mstd1-p1"],
)  # fmt: skip
def test_a_randaugment_that_timm_takes_is_read_and_draws(policy: str) -> None:
    text = base_with("  augment: {crop_padding: 1", f"  augment: {{randaugment: {policy}")
    augment = parse_experiment(text, "my.yaml").training.augment
    assert augment.randaugment == policy
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    assert randaugment_of(augment, 3, torch.device("cpu"))(images).shape == images.shape


@pytest.mark.parametrize(
    ("policy", "part"),
    [("rand-x9", "-x9"), ("rand-w0", "-w0"), ("rand-m", "-m"), ("rand-m9.5", "-m9.5"), ("rand-m9-", "-"),
     ("rand-m9-mstdinf", "-mstdinf"), ("rand-tfoo", "-tfoo"), ("rand-mstd.5", "-mstd.5"), ("rand-m9x", "-m9x"),
     ("augmix-m5", "augmix"), ("random-m9", "random"), ("rand_m9", "rand_m9"), ("RAND-m9", "RAND")],
)  # fmt: skip
def test_a_randaugment_that_timm_refuses_or_ignores_in_part_is_named_with_its_line(policy: str, part: str) -> None:
    assert problems_of(base_with("  augment: {crop_padding: 1", f"  augment: {{randaugment: {policy}")) == [
        f'my.yaml:40: training.augment.randaugment: got "{policy}", must be rand, and after it any of -m9, -n2, -p0.5, '
        f"-mstd0.5, -mmax10, -inc1 with numbers of your own, -tweights, -t3a, -t3aw; {part} is none of these"
    ]


@pytest.mark.parametrize(("policy", "most"), [("rand-n16-tweights", "-n15"), ("rand-t3aw-n15", "-n14")])
def test_a_randaugment_cannot_draw_more_operations_than_a_weighted_set_has(policy: str, most: str) -> None:
    (problem,) = problems_of(base_with("  augment: {crop_padding: 1", f"  augment: {{randaugment: {policy}"))
    assert f'got "{policy}", must have at most {most} with -t' in problem
    with pytest.raises(ValueError, match="population"):  # as timm would, in the middle of a training
        rand_augment_transform(policy, {})(Image.new("RGB", (8, 8)))


def test_colours_are_not_jittered_beside_randaugment() -> None:
    text = base_with("dataset: digits", "dataset: imagefolder").replace(
        "  augment: {", "  augment: {color_jitter: 0.4, "
    )
    assert not parse_experiment(text.replace("crop_padding: 1", "flip: true"), "my.yaml").warnings
    (warning,) = parse_experiment(text.replace("crop_padding: 1", "randaugment: rand-m9"), "my.yaml").warnings
    assert "training.augment.color_jitter: has no effect: randaugment changes colours in its place" in warning


def test_mean_pooling_leaves_no_class_token_and_a_stage_may_have_positions() -> None:
    text = BASE.replace("  num_classes: 10\n", "  num_classes: 10\n  pool: mean\n", 1)
    text = text.replace("      depth: [1, 2, 3]\n", "      depth: [1, 2, 3]\n      pos_embed: true\n", 1)
    last = parse_experiment(text, "my.yaml").space.largest.stages
    assert not any(stage.class_token for stage in last)
    assert [stage.pos_embed for stage in last] == [False, False, True]
    usual = parse_experiment(BASE, "my.yaml").space.largest.stages
    assert [stage.class_token for stage in usual] == [False, False, True]


def test_per_block_choices_have_a_gene_for_each_block() -> None:
    text = base_with("      kernel_size: 3\n", "      kernel_size: 3\n      per_block: [kv_stride]\n")
    names = [gene.name for gene in parse_experiment(text, "my.yaml").space.genes]
    assert [name for name in names if "block" in name] == [f"stage2.block{block}.kv_stride" for block in range(3)]


def test_an_anchor_has_a_value_for_each_of_its_blocks() -> None:
    text = base_with("      kernel_size: 3\n", "      kernel_size: 3\n      per_block: [kv_stride]\n")
    for strides, expected in (("[1, 2, 1]", [1, 2]), ("[1, 2]", [1, 2]), ("2", [2, 2])):
        experiment = parse_experiment(text.replace("kv_stride: 2}", f"kv_stride: [2, 2, {strides}]}}"), "my.yaml")
        blocks = experiment.anchor_archs()["cvt-like"].stages[2].blocks
        assert [block.kv_stride for block in blocks] == expected
    (problem,) = problems_of(text.replace("kv_stride: 2}", "kv_stride: [2, 2, [1]]}"))
    assert problem.endswith("anchors.cvt-like.kv_stride: got 1 values for stage 2, must be one, or 2 or 3")


def test_the_fingerprint_changes_with_anything_but_the_name_and_the_number_of_trials(small: Experiment) -> None:
    same = small_digits(**{"name:": "name: other"}).replace("trials: 8", "trials: 9")
    other = small_digits(**{"  epochs:": "  epochs: 4"})
    assert parse_experiment(same, "a").fingerprint == small.fingerprint
    assert parse_experiment(other, "b").fingerprint != small.fingerprint


SEARCHES = ["", "search: {}", "search: {trials: 9}", "search: {confirm: {seeds: 2}}", "search: {confirm: {top: 4}}"]


@pytest.mark.parametrize("first", SEARCHES)
@pytest.mark.parametrize("then", SEARCHES)
def test_a_run_can_go_on_with_other_trials_and_another_confirmation(first: str, then: str) -> None:
    begun, resumed = (parse_experiment(small_digits(**{"search:": line}), "my.yaml") for line in (first, then))
    manifest = begun.manifest(seed=0, num_trials=9)
    assert resumed.compares_with(manifest)
    assert resumed.compares_with({**manifest, "fingerprint": "of an older version"})


def test_a_run_cannot_go_on_with_another_sampler() -> None:
    begun, resumed = (
        parse_experiment(small_digits(**{"search:": f"search: {{sampler: {name}, confirm: {{}}}}"}), "my.yaml")
        for name in ("tpe", "random")
    )
    assert not resumed.compares_with(begun.manifest(seed=0, num_trials=9))


def test_confirm_takes_the_front_and_three_seeds_unless_told_otherwise() -> None:
    confirm = parse_experiment(base_with("search: {", "search: {confirm: {}, "), "my.yaml").search.confirm
    assert confirm is not None
    assert (confirm.top, confirm.seeds) == ("front", 3)
    assert parse_experiment(BASE, "my.yaml").search.confirm is None


def test_priors_are_weights_of_the_options_of_genes() -> None:
    priors = "{mlp_ratio: {4: 3}, kv_stride: [{2: 0.5}, {}, {1: 2}]}"
    experiment = parse_experiment(BASE.replace("sampler: tpe", f"priors: {priors}"), "my.yaml")
    assert experiment.priors["stage1.mlp_ratio"] == tuple(
        3.0 if option == 4 else 1.0 for option in experiment.space.stages[1].mlp_ratio
    )
    assert experiment.priors["stage0.kv_stride"] == (1.0, 0.5)
    assert "stage1.kv_stride" not in experiment.priors
    assert experiment.priors["stage2.kv_stride"] == (2.0, 1.0)


@pytest.mark.parametrize("weights", ["{}", "{2: 1}", "{1: 3, 2: 3}"])
def test_priors_that_prefer_no_option_have_no_effect(weights: str) -> None:
    text = BASE.replace("sampler: tpe", f"priors: {{kv_stride: {weights}}}")
    experiment = parse_experiment(text, "my.yaml")
    (warning,) = experiment.warnings
    assert "search.priors.kv_stride: has no effect: the options of each stage have the same weight" in warning
    assert not experiment.priors


def test_a_first_rung_that_no_training_reaches_has_no_effect() -> None:
    epochs = parse_experiment(BASE, "my.yaml").training.epochs
    for grace, told in ((epochs - 1, ()), (epochs, ("grace_period", "reduction_factor"))):
        text = base_with("grace_period: 2", f"grace_period: {grace}")
        warnings = parse_experiment(text, "my.yaml").warnings
        assert tuple(warning.partition("search.")[2].partition(":")[0] for warning in warnings) == told


def test_priors_that_no_sampler_heeds_have_no_effect() -> None:
    text = BASE.replace("sampler: tpe", "sampler: tpe, priors: {kv_stride: {2: 3}}")
    (warning,) = parse_experiment(text, "my.yaml").warnings
    assert "search.priors: has no effect: the sampler is tpe" in warning
