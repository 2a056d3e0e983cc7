"""Writes the logits of an exported network, as any user who loads it gets them. It runs in a new process:

python -m cvt_nas.export.reload FORMAT FOLDER IMAGES LOGITS
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from cvt_nas.export.formats import FORMATS


def main(name: str, folder: str, images: str, logits: str) -> None:
    with torch.inference_mode():
        found = FORMATS[name].load(Path(folder))(load_file(images)["images"])
    save_file({"logits": found.contiguous()}, logits)


if __name__ == "__main__":
    main(*sys.argv[1:])
