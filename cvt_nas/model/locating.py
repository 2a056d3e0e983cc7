"""Finds the files of weights by name."""

import re
from pathlib import Path

from cvt_nas.errors import ArchError, RunFolderError, first_line
from cvt_nas.model.checkpoints import weights_files
from cvt_nas.run import RunFolder, is_url

# The published networks on the Hub, where transformers' port has the converted official files.
_ON_HUB = {
    "cvt-13": "microsoft/cvt-13",
    "cvt-21": "microsoft/cvt-21",
    "cvt-w24": "microsoft/cvt-w24-384-22k",
}
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_BESIDE = ["*.json", "*.txt", "*.names"]  # files about architecture, classes and preprocessing


def locate(named: str | Path) -> Path:
    """Finds the file or folder of weights, for `read_weights`.

    Args:
        named: A file or folder; `RUN:ID` for a trained network of a run, see `RunFolder.pick`; a repository of the
            Hugging Face Hub such as `microsoft/cvt-13`, which may be in the cache; or the name of a network here or in
            timm, such as `cvt-13` or `cvt_13`, whose weights are on the Hub or where timm's registry says.

    Raises:
        ArchError: The name means a whole run, or weights cannot be downloaded.
        RunFolderError: The run has no such network.
    """
    text, path = str(named), Path(named)
    if path.exists():
        if (path / "manifest.json").is_file():
            raise ArchError(f"{named}: is a run; name one of its models, as {named}:best")
        return path.absolute()
    run, colon, trial = text.rpartition(":")
    if colon and (is_url(run) or (Path(run) / "manifest.json").is_file()):
        folder = RunFolder.open(run)
        return folder.fetched_model(folder.pick(trial).arch_id).absolute()
    if re.match("https?://", text):
        raise ArchError(f"{named}: is an address; download the weights first, and give their file or folder")
    if name := _ON_HUB.get(text.lower().replace("_", "-")):
        return _from_hub(name)
    if (registered := _from_timm(text)) is not None:
        return registered
    if _HUB_NAME.fullmatch(text):
        return _from_hub(text)
    raise ArchError(f"{named}: no such file or folder, no network of a run, and no name of a network with weights")


def means(named: str | Path, path: str) -> bool:
    """Whether `named` means the weights at `path`, which may not exist any more."""
    if str(Path(named).absolute()) == path:
        return True
    try:
        return str(locate(named)) == path
    except (ArchError, RunFolderError):
        return False


def _from_timm(name: str) -> Path | None:
    """Finds weights by timm's registry. None if timm does not know the name."""
    import timm

    if not timm.is_model(name):
        return None
    config = timm.models.get_pretrained_cfg(name)
    if config is not None and config.file:
        return Path(config.file).absolute()
    if config is not None and config.hf_hub_id:
        return _from_hub(config.hf_hub_id)
    raise ArchError(f"{name}: timm knows the network, and no weights of it")


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=[*_BESIDE, "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*_BESIDE, "pytorch_model*.bin"]))
    except (OSError, ValueError, RuntimeError) as error:  # the client and the network raise various errors
        raise ArchError(
            f"{name}: no such file or folder, and not to be had from the Hub: {first_line(error)}"
        ) from error
    weights_files(folder)
    return folder
