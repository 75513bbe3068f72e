# SPDX-License-Identifier: Apache-2.0
"""Are inputs corrupted as much as is said, the same for every model, and everything else in an example left alone?"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_sam.robustness import RobustnessAnalyzer
from hf_sam.robustness.images import IMAGES, Pixels, corrupted_image
from hf_sam.robustness.texts import TEXTS, Tokens, corrupted_text, with_texts
from tests.robustness.data import Processor, small, tokenizer

PIXELS = Pixels.of(Processor())
TEXT = "the film was very good , the film was bad ."


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image(side: int = 32, channels: int = 3) -> torch.Tensor:
    smooth = torch.linspace(0, 1, side).outer(torch.linspace(1, 0.2, side)).expand(channels, -1, -1)
    return ((smooth + 0.2 * torch.rand(channels, side, side, generator=stream(9))).clamp(0, 1) - 0.5) / 0.25


@pytest.mark.parametrize("name", IMAGES)
def test_a_corruption_is_worse_the_more_severe_it_is_and_the_same_again(name: str) -> None:
    clean = image()
    errors = []
    for severity in range(1, 6):
        found = corrupted_image(clean, name, severity, PIXELS, stream())
        assert torch.equal(found, corrupted_image(clean, name, severity, PIXELS, stream()))
        assert (found.dtype, found.shape) == (clean.dtype, clean.shape)
        assert -2 <= float(found.min()) <= float(found.max()) <= 2  # black and white of this processor
        errors.append(float((found - clean).square().mean()))
    assert errors == sorted(errors)
    assert errors[0] > 0


def test_noise_has_the_deviation_that_is_said_and_contrast_keeps_the_mean() -> None:
    grey = torch.zeros(3, 64, 64)  # brightness one half, far from both ends
    noisy = PIXELS.shown(corrupted_image(grey, "noise", 1, PIXELS, stream()))
    assert float(noisy.std()) == pytest.approx(0.08, rel=0.02)
    assert float(PIXELS.shown(corrupted_image(grey[:, :32], "noise", 1, PIXELS, stream())).std()) < 0.05
    found = PIXELS.shown(corrupted_image(image(), "contrast", 2, PIXELS, stream()))
    clean = PIXELS.shown(image())
    torch.testing.assert_close(found.mean(), clean.mean())
    torch.testing.assert_close(found.std(dim=(1, 2)), clean.std(dim=(1, 2)) * 0.5)


def test_blur_is_a_gaussian_filter() -> None:
    from scipy.ndimage import gaussian_filter

    clean = PIXELS.shown(image(32, 1))
    found = PIXELS.shown(corrupted_image(image(32, 1), "blur", 5, PIXELS, stream()))
    expected = gaussian_filter(clean[0].numpy(), 1.0, mode="nearest", truncate=3.0)
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-6)


def test_jpeg_is_what_pillow_reads_back() -> None:
    import io

    from PIL import Image

    shown = PIXELS.shown(image())
    stored = io.BytesIO()
    Image.fromarray((shown * 255).round().byte().permute(1, 2, 0).numpy()).save(stored, "JPEG", quality=40)
    expected = torch.from_numpy(np.array(Image.open(stored))).permute(2, 0, 1) / 255
    found = PIXELS.shown(corrupted_image(image(), "jpeg", 5, PIXELS, stream()))
    torch.testing.assert_close(found.float(), expected, atol=1e-5, rtol=0)


def test_pixels_are_what_the_processor_makes_of_black_and_white() -> None:
    class Bytes(Processor):
        do_rescale = False
        image_mean, image_std = (127.5,), (63.75,)

    class Plain(Processor):
        do_normalize = False

    assert Pixels.of(Bytes()) == Pixels((0.5,), (0.25,))
    assert Pixels.of(Plain()) == Pixels((0.0,), (1.0,))
    assert corrupted_image(np.zeros((3, 8, 8), dtype=np.float32), "noise", 1, PIXELS, stream()).dtype == np.float32


@pytest.mark.parametrize("name", TEXTS)
def test_words_are_changed_in_about_the_share_that_is_said(name: str, tmp_path: Path) -> None:
    made = tokenizer(tmp_path)
    row = {**made(" ".join(["film"] * 400), truncation=False), "labels": 1}
    made.model_max_length = 2000  # a word with a typo is several tokens
    tokens = Tokens.of(made, [row])
    share = TEXTS[name][1] * 0.1
    found = corrupted_text(row, name, 2, tokens, random.Random(0))
    again = corrupted_text(row, name, 2, tokens, random.Random(0))
    assert found == again
    assert found["labels"] == 1
    left = found["input_ids"].count(made.convert_tokens_to_ids("film"))
    if name == "capitals":  # which this tokenizer does not see
        assert found["input_ids"] == row["input_ids"]
    else:
        assert 400 - left == pytest.approx(400 * share, abs=20)


def test_special_tokens_pairs_and_padding_stay(tmp_path: Path) -> None:
    made = tokenizer(tmp_path)
    row = dict(made("the film", "was good .", padding="max_length", max_length=16))
    tokens = Tokens.of(made, [row, row])
    same = with_texts(row, tokens, lambda text: text)
    assert same == row
    found = with_texts(row, tokens, lambda text: f"{text} bad")
    expected = made("the film bad", "was good . bad", padding="max_length", max_length=16)
    assert found == dict(expected)
    as_tensors = {key: torch.tensor(value) for key, value in row.items()}
    assert with_texts(as_tensors, tokens, lambda text: f"{text} bad")["input_ids"].tolist() == expected["input_ids"]


def test_what_grows_too_long_is_cut_before_its_last_special_token(tmp_path: Path) -> None:
    made = tokenizer(tmp_path)
    rows = [dict(made("the film", padding="max_length", max_length=6))] * 2
    found = with_texts(rows[0], Tokens.of(made, rows), lambda text: "the " * 9)
    assert len(found["input_ids"]) == 6
    assert found["input_ids"][-1] == made.sep_token_id


def test_scores_on_corrupted_inputs_are_those_of_the_corrupted_examples() -> None:
    model, examples = small("vit")
    one = RobustnessAnalyzer(model, examples, processing_class=Processor(), batch_size=4)
    found = one.corrupted("noise", 5)
    assert found.scores["nll"] != one.as_trained().scores["nll"]
    assert found.condition.name == "noise, severity 5"
    assert found.predictions.labels.tolist() == one.as_trained().predictions.labels.tolist()
    again = RobustnessAnalyzer(model, examples, processing_class=Processor(), batch_size=4)
    assert found.scores == again.corrupted("noise", 5).scores


@pytest.mark.parametrize(
    ("family", "processor", "name", "error", "message"),
    [
        ("vit", None, "noise", ValueError, "must be the image processor"),
        ("bert", None, "typos", ValueError, "must be the tokenizer"),
        ("vit", Processor(), "typos", ValueError, r"corrupted\(name\)` must be one of noise, blur, contrast, jpeg"),
    ],
)
def test_what_cannot_be_corrupted_is_told(
    family: str, processor: Any, name: str, error: type[Exception], message: str
) -> None:
    model, examples = small(family)
    with pytest.raises(error, match=message):
        RobustnessAnalyzer(model, examples, processing_class=processor).corrupted(name)


def test_texts_with_labels_for_tokens_are_refused(tmp_path: Path) -> None:
    model, examples = small("gpt2")
    one = RobustnessAnalyzer(model, examples, processing_class=tokenizer(tmp_path))
    with pytest.raises(NotImplementedError, match="'labels' with one value a token"):
        one.corrupted("typos")
