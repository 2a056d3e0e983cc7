"""CvT for timm. `import cvt_nas.timm` registers the models `cvt_13`, `cvt_21`, `cvt_w24` and `cvt_nas`.

    timm.create_model("cvt_13", num_classes=37, drop_path_rate=0.1)
    timm.create_model("cvt_nas", arch="my_model/arch.json")
    timm.create_model("local-dir:my_model", pretrained=True)  # output of `--format timm`

A script that does not import this module can be run by a command that does:

    python -c "import cvt_nas.timm, runpy; runpy.run_path('train.py', run_name='__main__')" DATA --model cvt_13

An official checkpoint of 1,000 classes is loaded by `--pretrained --model-kwargs "pretrained_cfg_overlay={'file':
'CvT-13-224x224-IN-1k.pth'}"`. `--num-classes` may then differ. `--torchscript` cannot read the shapes in the signatures
of these modules, but `--torchcompile` can.

The interface of a timm model is that of timm 1.0.31: models/_builder.py, models/_features.py and
optim/_param_groups.py.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from cvt_nas.arch import NAMED_ARCHS, ArchConfig, arch_from_dict, load_arch, sides_of
from cvt_nas.model import CvT

torch.fx.wrap("rearrange")  # see cvt_nas.model.network


class TimmCvT(CvT):
    """`CvT` with the interface of a timm model. Its state dict has the official names.

    Args:
        arch: Architecture to build. `num_classes`, `in_chans` and `img_size` replace its values.
        num_classes: Number of classes. 0 leaves the head out.
        img_size: Side of square images, or height and width. The only weight that depends on it is a position
            embedding, which is interpolated. Images of any other size still fit.
        global_pool: Input of the head: `token` for the class token, `avg` for the mean of the other tokens, or `""` for
            all tokens. None for the input that the architecture uses.
        drop_rate: Rate of dropout before the head.
        drop_path_rate: `drop_path` of `CvT`. It rises within each stage. In timm's models, it rises over the whole
            depth.

    Raises:
        ArchError: If no such network can exist.
        ValueError: If `drop_path_rate` does not have one rate for each stage, or if there is no such pooling.
    """

    def __init__(
        self,
        arch: ArchConfig,
        *,
        num_classes: int | None = None,
        in_chans: int | None = None,
        img_size: int | Sequence[int] | None = None,
        global_pool: str | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float | Sequence[float] = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        arch = dataclasses.replace(
            arch,
            num_classes=num_classes or arch.num_classes,
            num_channels=arch.num_channels if in_chans is None else in_chans,
            image_size=arch.image_size if img_size is None else img_size,
        )
        super().__init__(arch, drop_path=drop_path_rate)
        self.num_classes, self.in_chans = arch.num_classes, arch.num_channels
        self.num_features = self.head_hidden_size = arch.stages[-1].embed_dim
        self.num_prefix_tokens = int(arch.stages[-1].class_token)
        self.global_pool = self._pooling("token" if self.num_prefix_tokens else "avg")
        self.head_drop = nn.Dropout(drop_rate)
        reduction, self.feature_info = 1, []
        for index, stage in enumerate(arch.stages):
            reduction *= stage.patch_stride
            self.feature_info.append({"num_chs": stage.embed_dim, "reduction": reduction, "module": f"stage{index}"})
        self.to(device=device, dtype=dtype)
        if global_pool is not None:
            self.global_pool = self._pooling(global_pool)
        if num_classes == 0:
            self.reset_classifier(0)

    def _pooling(self, name: str) -> str:
        possible = ("token", "avg", "") if self.num_prefix_tokens else ("avg", "")
        if name not in possible:
            raise ValueError(f"global_pool: got {name!r}, must be one of {', '.join(map(repr, possible))}")
        return name

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the head by a new one, or removes it if there are 0 classes."""
        if global_pool is not None:
            self.global_pool = self._pooling(global_pool)
        self.num_classes = num_classes
        head = nn.Identity()
        if num_classes > 0:
            self.arch = dataclasses.replace(self.arch, num_classes=num_classes)
            some = next(self.parameters())
            head = nn.Linear(self.num_features, num_classes, device=some.device, dtype=some.dtype)
            nn.init.trunc_normal_(head.weight, std=0.02)  # same as in `CvT`
            nn.init.zeros_(head.bias)
        self.head = head.train(self.training)  # pyright: ignore[reportAttributeAccessIssue]

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay, in addition to the vectors that timm exempts itself."""
        return {name for name, _ in self.named_parameters() if name.endswith(("cls_token", "pos_embed"))}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that group parameters into layers, for learning rates that fall from layer to layer."""
        fine = [
            (r"^stage(\d+)\.(?:patch_embed|cls_token)", (-1,)),  # comes before block 0 of the stage
            (r"^stage(\d+)\.blocks\.(\d+)", None),
            (r"^norm", (99999,)),  # timm's number for a part of the layer before
        ]
        return {"stem": r"^stage0\.patch_embed", "blocks": r"^stage(\d+)" if coarse else fine}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Sets whether activations of a block are computed again in the backward pass instead of being kept."""
        self.set_recomputing(enable)

    def _forward_stage(self, index: int, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of a stage, class token first, and the other tokens as a map."""
        tokens, grid = self.get_submodule(f"stage{index}")(maps)
        return tokens, _map_of(tokens, grid)

    def forward_features(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch tokens features"]:
        """Normalised tokens of the last stage. The class token is the first if there is one."""
        tokens, maps = images, images
        for index in range(len(self.arch.stages)):
            tokens, maps = self._forward_stage(index, maps)
        return self.norm(tokens)

    def forward_head(self, features: Float[Tensor, "batch tokens features"], pre_logits: bool = False) -> Tensor:
        """Logits for the result of `forward_features`. With `pre_logits`, the input of the head instead."""
        if self.global_pool == "token":
            features = features[:, 0]
        elif self.global_pool == "avg":
            features = features[:, self.num_prefix_tokens :].mean(dim=1)
        features = self.head_drop(features)
        return features if pre_logits else self.head(features)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        return self.forward_head(self.forward_features(images))

    def forward_intermediates(
        self,
        images: Float[Tensor, "batch channels height width"],
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Maps of some stages, without the class token.

        Args:
            indices: Indices of stages. A number stands for so many of the last stages, None for all.
            norm: Whether the last stage's map is normalised as before the head. The other stages have no norm.
            stop_early: Whether the stages after the last of `indices` are left out.
            intermediates_only: Whether only the maps are returned.

        Returns:
            The tokens of the last stage that ran, in the form of `forward_features`, and the list of maps.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt: got {output_fmt!r}, must be 'NCHW'")
        last = len(self.arch.stages) - 1
        taken, greatest = feature_take_indices(last + 1, indices)
        tokens, maps, found = images, images, []
        for index in range((greatest if stop_early else last) + 1):
            tokens, maps = self._forward_stage(index, maps)
            if index == last:
                tokens = self.norm(tokens)
            if index in taken:
                found.append(_map_of(tokens, maps.shape[2:]) if norm and index == last else maps)
        return found if intermediates_only else (tokens, found)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes the stages after the last of `indices`. If there are any, the norm and the head are removed too.

        The norm and the head fit only the last stage.

        Args:
            prune_norm, prune_head: Whether the norm and the head are removed even if the last stage is kept.

        Returns:
            The indices, counted from the first stage.
        """
        last = len(self.arch.stages) - 1
        taken, greatest = feature_take_indices(last + 1, indices)
        for index in range(greatest + 1, last + 1):
            delattr(self, f"stage{index}")
        if greatest < last:
            self.arch = dataclasses.replace(self.arch, stages=self.arch.stages[: greatest + 1])
            self.num_features = self.head_hidden_size = self.arch.stages[-1].embed_dim
            self.num_prefix_tokens = 0
        if greatest < last or prune_norm:
            self.norm = nn.Identity()
        if greatest < last or prune_head:
            self.reset_classifier(0, "")
        return list(taken)


def _map_of(
    tokens: Float[Tensor, "batch tokens channels"], grid: Sequence[int]
) -> Float[Tensor, "batch channels height width"]:
    """The tokens without the class token, as a map."""
    return rearrange(tokens[:, tokens.shape[1] - grid[0] * grid[1] :], "b (h w) c -> b c h w", h=grid[0], w=grid[1])


def facts_of(arch: ArchConfig) -> dict[str, Any]:
    """Facts that timm needs to give weights of `arch` another head or another number of channels."""
    return {
        "num_classes": arch.num_classes,
        "input_size": arch.image_shape,
        "first_conv": "stage0.patch_embed.proj",
        "classifier": "head",
    }


def preprocessing_facts(
    *, mean: Sequence[float], std: Sequence[float], interpolation: str = "bilinear", crop_pct: float = 1.0
) -> dict[str, Any]:
    """The preprocessing of images under timm's names; see `Preprocessing`."""
    return {
        "mean": tuple(mean),
        "std": tuple(std),
        "interpolation": interpolation,
        "crop_pct": crop_pct,
        "crop_mode": "squash" if crop_pct == 1 else "center",
    }


def _published(name: str) -> dict[str, Any]:
    """Facts on a published network. Wu et al. evaluate on the centre of images, but on whole images of 384 pixels."""
    arch = NAMED_ARCHS[name]
    seen = preprocessing_facts(
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        interpolation="bicubic",
        crop_pct=0.875 if min(sides_of(arch.image_size)) < 384 else 1.0,
    )
    return {**facts_of(arch), **seen}


default_cfgs = generate_default_cfgs(  # timm's registry looks for this name
    {"cvt_13": _published("cvt-13"), "cvt_21": _published("cvt-21"), "cvt_w24": _published("cvt-w24")}
)


def _create(name: str, pretrained: bool, arch: ArchConfig, **kwargs: Any) -> nn.Module:
    if (chosen := kwargs.pop("feature_cls", "getter")) != "getter":
        raise ValueError(f"feature_cls: got {chosen!r}, must be 'getter': a stage returns tokens, not a map")
    features = {"feature_cls": "getter", "out_indices": tuple(range(len(arch.stages)))}
    return build_model_with_cfg(TimmCvT, name, pretrained, feature_cfg=features, arch=arch, **kwargs)


@register_model
def cvt_13(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CvT-13, 20.0 M parameters; see `TimmCvT` for the arguments."""
    return _create("cvt_13", pretrained, NAMED_ARCHS["cvt-13"], **kwargs)


@register_model
def cvt_21(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CvT-21, 31.6 M parameters; see `TimmCvT` for the arguments."""
    return _create("cvt_21", pretrained, NAMED_ARCHS["cvt-21"], **kwargs)


@register_model
def cvt_w24(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CvT-W24, 277 M parameters, for images of 384 pixels; see `TimmCvT` for the arguments."""
    return _create("cvt_w24", pretrained, NAMED_ARCHS["cvt-w24"], **kwargs)


@register_model
def cvt_nas(pretrained: bool = False, *, arch: ArchConfig | Mapping[str, Any] | str | Path, **kwargs: Any) -> nn.Module:
    """Any architecture of this package.

    Args:
        arch: An architecture, or a dict from `arch_to_dict`, or an argument of `load_arch`. `timm.models.save_for_hf`
            can save only a dict.
        kwargs: See `TimmCvT`.

    Raises:
        ArchError: If `arch` is not an architecture.
    """
    if not isinstance(arch, ArchConfig):
        arch = arch_from_dict(arch) if isinstance(arch, Mapping) else load_arch(arch)
    given = kwargs.pop("pretrained_cfg", None) or {}
    given = given if isinstance(given, Mapping) else vars(given)
    # timm fills in 1000 classes, 3 channels and 224 pixels if the facts come neither from a folder nor from the Hub
    told = given if given.get("source") else {}
    return _create("cvt_nas", pretrained, arch, pretrained_cfg={**given, **facts_of(arch), **told}, **kwargs)
