# SPDX-License-Identifier: Apache-2.0
"""Turn images into pixels: decode them once when they are few, on access when they are many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import UnidentifiedImageError
from pyarrow import ArrowException
from torch.utils.data import Dataset as TorchDataset
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.utils import is_torchvision_available

from hf_sam.cli.common.arguments import ScriptArguments
from hf_sam.cli.common.errors import UserError, one_line
from hf_sam.cli.common.models import LOADING_ERRORS
from hf_sam.cli.common.progress import track
from hf_sam.cli.common.reading.image_files import check_images, fault_of
from hf_sam.cli.common.reading.tables import Table

_IN_MEMORY = 2**30  # bytes of pixels up to which decoding once beats decoding in every epoch
_CHUNK = 256
_USUAL = ("image", "img", "images", "image_path", "img_path", "file_name", "filename", "path")


class Images(TorchDataset):
    """Pixels and labels of one split."""

    def __init__(self, data: Dataset, where: str, column: str, labels: list[Any] | None, processor: Any) -> None:
        self.rows, self.where, self.column, self.labels, self.processor = data, where, column, labels, processor
        self.pixels: torch.Tensor | None = None
        first = self._decode(slice(0, 1))
        if first.nbytes * len(data) <= _IN_MEMORY:
            starts = range(0, len(data), _CHUNK)
            chunks = track(starts, f"Reading the images of {where}")
            self.pixels = torch.cat([self._decode(slice(start, start + _CHUNK)) for start in chunks])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pixels = self._decode(slice(index, index + 1))[0] if self.pixels is None else self.pixels[index]
        return {"pixel_values": pixels} | ({} if self.labels is None else {"labels": self.labels[index]})

    def _decode(self, rows: slice) -> torch.Tensor:
        try:
            # Pipelines convert to RGB as well: what the model sees must not depend on who calls it.
            images = [_to_rgb(image) for image in self.rows[rows][self.column]]
            return self.processor(images=images, return_tensors="pt")["pixel_values"]
        except (AttributeError, OSError, ValueError, UnidentifiedImageError) as error:
            where, cause = self._find_fault(rows, error)
            why = "no image" if isinstance(cause, UnidentifiedImageError) else one_line(cause)
            raise UserError(f"{where}: an image is missing or cannot be read: {why}: convert or remove it.") from error

    def _find_fault(self, rows: slice, error: Exception) -> tuple[str, Exception]:
        """Return the row (and file) of the first image that cannot be read, and why."""
        files = self.rows.cast_column(self.column, ImageFeature(decode=False))
        stop = min(rows.stop, len(self.rows))
        for row in range(rows.start, stop):
            try:
                _to_rgb(self.rows[row][self.column])
            except (AttributeError, OSError, ValueError, UnidentifiedImageError) as fault:
                path = (files[row][self.column] or {}).get("path")
                return f"{self.where}, row {row}" + (f" ({path})" if path else ""), fault
        return f"{self.where}, rows {rows.start} to {stop - 1}", error


def _to_rgb(image: Any) -> Any:
    if (fault := fault_of(image)) is not None:
        raise ValueError(fault)
    return image.convert("RGB")


def load_processor(args: ScriptArguments, config: Any) -> Any:
    """Return the checkpoint's image processor, or a plain one for a model built from a config."""
    source = args.image_processor_name or args.model_name_or_path
    if args.image_size is not None and (source is not None or hasattr(config, "image_size")):
        where = source or "the model's config (--config_overrides)"
        raise UserError(f"--image_size does nothing here: {where} says how large images are.")
    if source is not None:
        try:
            return AutoImageProcessor.from_pretrained(
                source, revision=args.model_revision, trust_remote_code=args.trust_remote_code
            )
        except LOADING_ERRORS as error:
            raise UserError(f"no image processor in {source} (--image_processor_name): {one_line(error)}") from error
    if getattr(config, "num_channels", 3) != 3:
        raise UserError(
            f"--config_overrides: num_channels must be 3 (images are read as RGB), got {config.num_channels}."
        )
    size = getattr(config, "image_size", args.image_size or 224)
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    half = [0.5, 0.5, 0.5]
    return _processor_class()(size={"height": height, "width": width}, image_mean=half, image_std=half)


def _processor_class() -> Any:
    """Return the class that a pipeline would choose, so that both see the same pixels."""
    if not is_torchvision_available() and hasattr(transformers, "ViTImageProcessorPil"):
        return transformers.ViTImageProcessorPil
    return transformers.ViTImageProcessor


def find_image_column(table: Table, given: str | None) -> str:
    """Return the column the user named, or the one with a usual name."""
    where, listed = table.where, ", ".join(table.names)
    if given is not None:
        if given not in table.names:
            raise UserError(f"--image_column {given}: {where} has the columns {listed}.")
        return given
    for name in table.names:
        if name.lower() in _USUAL:
            return name
    raise UserError(f"{where} has the columns {listed}: say which one holds images with --image_column.")


def find_files(table: Table, column: str) -> None:
    """Turn the paths in a file into those of images: relative to the file, or else to the working directory.

    Raises:
        UserError: if a row has none, or files are missing or cannot be read, or the column holds no images.
    """
    if isinstance(table.source, Dataset):
        table.source = as_images(table.source, table.where, column)
        if table.source.data.nbytes <= _IN_MEMORY:  # what is larger is looked at where it is decoded
            _check_stored(table.source, table.where, column)
        return
    if table.folder is None:  # a folder of images, whose paths we listed
        return
    paths = table.values(column)
    wrong = next((row for row, path in enumerate(paths) if not isinstance(path, str) or not path.strip()), None)
    if wrong is not None:
        raise UserError(f"{table.where}, row {wrong}: {column!r} must be the path of an image, got {paths[wrong]!r}.")
    found = [path if (path := table.folder / name).is_file() else Path(name).absolute() for name in paths]
    check_images(table.where, found, paths)
    table.source[column] = [str(path) for path in found]


def _check_stored(data: Dataset, where: str, column: str) -> None:
    """Look at the headers of images that are part of a data set; one that is missing is no image."""
    files: list[Path | bytes] = []
    names = []
    for row, stored in enumerate(data.cast_column(column, ImageFeature(decode=False))[column][:]):
        content, path = (stored or {}).get("bytes"), (stored or {}).get("path")
        files.append(Path(path) if content is None and path else content or b"")
        names.append(f"row {row}" + (f" {path}" if path else ""))
    check_images(where, files, names)


def image_data(table: Table, column: str) -> Dataset:
    """Return the rows of a table as a data set that decodes its images."""
    if isinstance(table.source, Dataset):
        return table.source
    data = Dataset.from_dict({column: table.values(column)}, features=Features({column: ImageFeature()}))
    if len(data) != len(table):
        raise UserError(f"{table.where}: {len(table):,} images found, {len(data):,} read.")
    return data


def as_images(data: Dataset, where: str, column: str) -> Dataset:
    """Let `datasets` decode the column, which a parquet file without its metadata holds as bytes or paths."""
    if isinstance(data.features[column], ImageFeature):
        return data
    try:
        return data.cast_column(column, ImageFeature())
    except (TypeError, ValueError, ArrowException) as error:
        raise UserError(f"{where}: column {column!r} holds no images: {one_line(error)}") from error
