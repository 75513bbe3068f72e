# SPDX-License-Identifier: Apache-2.0
"""Corrupted images: noise, blur, contrast and JPEG, after Hendrycks and Dietterich (2019)."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hf_sam.robustness.extras import needed

SMALL_SIDE = 64
"""Shorter side below which the constants of CIFAR-10-C are taken, and not those of ImageNet-C."""


@dataclass(frozen=True)
class Pixels:
    """How an image processor's numbers become brightness from 0 to 1, and back: value * std + mean.

    Attributes:
        mean: of each channel, or one for all.
        std: the same.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, processor: Any) -> Pixels:
        """Return it for a processor of transformers.

        Raises:
            ValueError: if `processor` is none.
        """
        if not hasattr(processor, "image_mean") or not hasattr(processor, "image_std"):
            raise ValueError(
                "`RobustnessAnalyzer(processing_class=...)` must be the image processor for corrupted images: its "
                "image_mean and image_std say which number is black and which white."
            )
        scale = 1.0 if getattr(processor, "do_rescale", True) else 255.0
        if not getattr(processor, "do_normalize", True) or processor.image_mean is None:
            return cls((0.0,), (1 / scale,))
        mean, std = (_tuple(getattr(processor, name)) for name in ("image_mean", "image_std"))
        return cls(tuple(each / scale for each in mean), tuple(each / scale for each in std))

    def shown(self, values: Tensor) -> Tensor:
        """Return (channels, height, width) as brightness from 0 to 1."""
        return (values.double() * self._column(self.std) + self._column(self.mean)).clamp(0, 1)

    def values(self, shown: Tensor) -> Tensor:
        """Return the numbers that the model is given."""
        return (shown - self._column(self.mean)) / self._column(self.std)

    def _column(self, numbers: tuple[float, ...]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.float64).view(-1, 1, 1)


def corrupted_image(values: Any, name: str, severity: int, pixels: Pixels, stream: torch.Generator) -> Any:
    """Return an image as the model is given it, (channels, height, width), corrupted.

    Args:
        values: tensor, array or nested lists.
        name: of `IMAGES`.
        severity: 1 to 5.
        pixels: how numbers become brightness.
        stream: of what is random.
    """
    tensor = torch.as_tensor(np.asarray(values) if not isinstance(values, Tensor) else values)
    if tensor.dim() != 3:
        raise NotImplementedError(
            f"Corrupted images need pixel_values of (channels, height, width), got {tuple(tensor.shape)}."
        )
    change, small, large = IMAGES[name]
    amount = (small if min(tensor.shape[1:]) < SMALL_SIDE else large)[severity - 1]
    made = pixels.values(change(pixels.shown(tensor.cpu()), amount, stream).clamp(0, 1)).to(tensor.dtype)
    return made if isinstance(values, Tensor) else made.numpy()


def _noise(shown: Tensor, deviation: float, stream: torch.Generator) -> Tensor:
    return shown + deviation * torch.randn(shown.shape, generator=stream, dtype=shown.dtype)


def _blur(shown: Tensor, deviation: float, stream: torch.Generator) -> Tensor:
    """Return the image under a Gaussian filter, its edges repeated."""
    del stream
    reach = max(1, round(3 * deviation))
    at = torch.arange(-reach, reach + 1, dtype=shown.dtype)
    weights = torch.exp(-0.5 * (at / deviation) ** 2)
    weights = (weights / weights.sum()).view(1, 1, 1, -1)
    rows = F.pad(shown.unsqueeze(1), (reach, reach, 0, 0), mode="replicate")
    columns = F.pad(F.conv2d(rows, weights), (0, 0, reach, reach), mode="replicate")
    return F.conv2d(columns, weights.transpose(2, 3)).squeeze(1)


def _contrast(shown: Tensor, left: float, stream: torch.Generator) -> Tensor:
    del stream
    mean = shown.mean(dim=(1, 2), keepdim=True)
    return (shown - mean) * left + mean


def _jpeg(shown: Tensor, quality: float, stream: torch.Generator) -> Tensor:
    del stream
    image = needed("PIL.Image")
    if shown.shape[0] not in (1, 3):
        raise NotImplementedError(f"JPEG has 1 or 3 channels, and these images have {shown.shape[0]}.")
    stored, array = io.BytesIO(), (shown * 255).round().byte().permute(1, 2, 0).numpy()
    image.fromarray(array[:, :, 0] if shown.shape[0] == 1 else array).save(stored, "JPEG", quality=int(quality))
    read = np.asarray(image.open(stored)).reshape(array.shape)
    return torch.from_numpy(read.copy()).permute(2, 0, 1).double() / 255


Corruption = Callable[[Tensor, float, torch.Generator], Tensor]
IMAGES: dict[str, tuple[Corruption, tuple[float, ...], tuple[float, ...]]] = {
    "noise": (_noise, (0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)),
    "blur": (_blur, (0.4, 0.6, 0.7, 0.8, 1.0), (1, 2, 3, 4, 6)),
    "contrast": (_contrast, (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
    "jpeg": (_jpeg, (80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),
}
"""By name: the corruption, and its strength at five severities for small images and for others.

Standard deviation of the noise, of the filter in pixels, the share of the contrast that is left, quality of the JPEG.
"""


def _tuple(numbers: Any) -> tuple[float, ...]:
    return tuple(float(each) for each in np.atleast_1d(numbers))
