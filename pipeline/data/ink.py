"""CMYK pictures as sRGB."""

from __future__ import annotations

import io

from PIL import Image, ImageCms


def from_ink(picture: Image.Image) -> Image.Image:
    """A decoded CMYK picture as sRGB: through its own profile, or by Pillow's formula where it has no usable one."""
    profile = picture.info.get("icc_profile")
    if profile:
        try:
            found = ImageCms.profileToProfile(
                picture,
                ImageCms.ImageCmsProfile(io.BytesIO(profile)),
                ImageCms.createProfile("sRGB"),
                outputMode="RGB",
            )
        except (ImageCms.PyCMSError, OSError):  # damaged, or a profile of other colours
            found = None
        if found is not None:
            return found
    return picture.convert("RGB")
