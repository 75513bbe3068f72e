# SPDX-License-Identifier: Apache-2.0
"""Which image files can be read, and read right? Their headers are looked at before anything is trained."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from hf_sam.cli.common.errors import UserError, one_line

READABLE = frozenset(
    {
        ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".webp", ".avif", ".jp2",
        ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".ico", ".psd",
    }
)  # fmt: skip
# Cameras write these and Pillow does not read them: images all the same, so that they cannot be left out.
UNREADABLE = frozenset({".heic", ".heif", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".jxl", ".dcm"})
# Modes that become RGB as people see them. The others hold more than 8 bits a channel, which convert("RGB") clips.
_EIGHT_BITS = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"}


def check_images(where: str, files: Sequence[Path], names: Sequence[str]) -> None:
    """Open every file as far as its header.

    Raises:
        UserError: with the number and the names of those that are missing, unreadable, or hold what would be clipped.
    """
    bad = [(name, why) for file, name in zip(files, names, strict=True) if (why := find_fault(file)) is not None]
    if bad:
        shown = "; ".join(f"{name} ({why})" for name, why in bad[:5]) + ("; ..." if len(bad) > 5 else "")
        raise UserError(
            f"{where}: {len(bad):,} of {len(files):,} images cannot be read: {one_line(shown, 600)}: "
            "convert or remove them."
        )


def find_fault(file: Path) -> str | None:
    """Return why a file cannot be read as an image of 8 bits a channel, None if it can."""
    if file.suffix.lower() in UNREADABLE:
        return f"{file.suffix.lower()[1:].upper()} has to be converted to JPEG or PNG"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a palette with transparency, a damaged EXIF
            with Image.open(file) as image:
                return fault_of(image)
    except FileNotFoundError:
        return "does not exist"
    except UnidentifiedImageError:
        return "is no image, or of more channels than four" if file.suffix.lower() in (".tif", ".tiff") else "no image"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return one_line(error, 80)


def fault_of(image: Image.Image) -> str | None:
    """Return why an opened image would be read wrongly as RGB, None if it would not."""
    if image.mode not in _EIGHT_BITS:
        return f"more than 8 bits a pixel (mode {image.mode}), which would be clipped: scale them to 8"
    pages = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
    if pages > 1:
        return f"{pages} pages or channels, of which the first alone would be read"
    return None
