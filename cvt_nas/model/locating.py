"""Which files on this machine are meant by the name of weights."""

import re
from pathlib import Path

from cvt_nas.errors import ArchError, RunFolderError, first_line
from cvt_nas.model.checkpoints import weights_files
from cvt_nas.run import RunFolder, is_url

# Of the published networks, what transformers' port has on the Hub, where the official files were converted to.
_ON_HUB = {
    "cvt-13": "microsoft/cvt-13",
    "cvt-21": "microsoft/cvt-21",
    "cvt-w24": "microsoft/cvt-w24-384-22k",
}
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_BESIDE = ["*.json", "*.txt", "*.names"]  # what tells architecture, classes and preprocessing


def locate(named: str | Path) -> Path:
    """The file or folder of weights that `named` means, for `read_weights`.

    Args:
        named: It itself; `RUN:ID`, of a trained network of a run, as `RunFolder.pick` takes it; a repository of the
            Hugging Face Hub, as `microsoft/cvt-13`, from its cache or else the network; or a network by its name here
            or in timm, as `cvt-13` or `cvt_13`, whose weights are on the Hub or where timm's registry says.

    Raises:
        ArchError: It means a whole run, or cannot be had.
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
    """Whether `named` means the weights at `path`, which need not be there any more."""
    if str(Path(named).absolute()) == path:
        return True
    try:
        return str(locate(named)) == path
    except (ArchError, RunFolderError):
        return False


def _from_timm(name: str) -> Path | None:
    """Where timm's registry says that the weights of a network are; None where it knows none of this name."""
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
    except (OSError, ValueError, RuntimeError) as error:  # what the client and its transports raise
        raise ArchError(
            f"{name}: no such file or folder, and not to be had from the Hub: {first_line(error)}"
        ) from error
    weights_files(folder)
    return folder
