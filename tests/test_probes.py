"""Probes from nothing, a folder, a dataset or a tensor; and every source that gives none."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from hf_lineage.errors import ArgumentError, MissingExtraError
from hf_lineage.features.networks import Images, Tokens
from hf_lineage.features.probes import probes

COLOUR = Images(3, 32, 24, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
GREY = Images(1, 28, 28, (0.0,), (1.0,))
TEXT = Tokens(1000, 16)


def pixels(found: torch.Tensor, inputs: Images) -> torch.Tensor:
    """Back to [0, 1]."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (inputs.mean, inputs.std))
    return found * std + mean


class TestMadeUp:
    def test_images_fall_like_one_over_frequency(self) -> None:
        found = pixels(
            probes(None, Images(3, 64, 64, (0.5,) * 3, (0.5,) * 3), 24), Images(3, 64, 64, (0.5,) * 3, (0.5,) * 3)
        )
        assert found.shape == (24, 3, 64, 64) and found.dtype == torch.float32
        assert found.min() >= -1e-6 and found.max() <= 1 + 1e-6
        power = (
            torch.fft.rfft2(found - found.mean((2, 3), keepdim=True)).abs().square().mean((0, 1))[0]
        )  # (33,)  along a row
        slope = torch.log(power[16] / power[2]) / torch.log(torch.tensor(8.0))
        assert -2.6 < slope < -1.4  # power, so twice the amplitude's −1

    def test_images_differ_in_light_and_contrast(self) -> None:
        found = pixels(probes(None, COLOUR, 32), COLOUR)
        assert found.mean((2, 3)).std() > 0.05 and found.std((2, 3)).std() > 0.02
        assert (found[:, 0] - found[:, 1]).abs().mean() > 0.02  # coloured

    @pytest.mark.parametrize("inputs", [COLOUR, GREY, TEXT, Images(4, 1, 1, (0.5,) * 4, (0.5,) * 4)])
    def test_the_seed_decides(self, inputs: Any) -> None:
        first, again, other = (probes(None, inputs, 5, seed) for seed in (3, 3, 4))
        assert torch.equal(first, again) and not torch.equal(first, other) and first.isfinite().all()

    def test_fewer_are_the_first_of_more(self) -> None:
        assert torch.equal(probes(None, COLOUR, 3), probes(None, COLOUR, 8)[:3])

    def test_ids_follow_zipf(self) -> None:
        ids = probes(None, Tokens(50, 64), 2000)
        assert ids.shape == (2000, 64) and ids.dtype == torch.int64 and ids.min() == 0 and ids.max() == 49
        count = torch.bincount(ids.flatten(), minlength=50).float()
        assert abs(count[0] / count[9] - 10) < 1

    def test_512_unless_told(self) -> None:
        assert len(probes(None, TEXT)) == 512

    @pytest.mark.parametrize("count", [0, -1, 2.5, True, "8"])
    def test_a_wrong_count(self, count: Any) -> None:
        with pytest.raises(ArgumentError, match="Expected a number of probes"):
            probes(None, TEXT, count)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index, mode in enumerate(["RGB", "L", "RGBA", "P", "1", "I;16", "LA", "CMYK"]):
        ending = "jpg" if mode == "CMYK" else "png"
        Image.new("RGB", (40 + index, 50), (255, 0, 0)).convert(
            "L" if mode == "I;16" else mode.replace("I;16", "L")
        ).save(tmp_path / f"{index}.{ending}")
    Image.new("I;16", (40, 50), 76 * 256).save(tmp_path / "5.png")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    return tmp_path


class TestFolder:
    def test_images_of_every_mode_are_cut_and_standardised(self, folder: Path) -> None:
        found = probes(folder, COLOUR)
        assert found.shape == (8, 3, 32, 24)
        red = pixels(found, COLOUR)[0].mean((1, 2))
        torch.testing.assert_close(red, torch.tensor([1.0, 0.0, 0.0]))
        grey = pixels(probes(folder, GREY), GREY)
        assert grey.shape == (8, 1, 28, 28)
        torch.testing.assert_close(grey[[0, 1, 5], 0, 14, 14], torch.full((3,), 76 / 255), atol=0.01, rtol=0)

    def test_the_middle_is_kept(self, tmp_path: Path) -> None:
        wide = Image.new("L", (300, 100), 0)
        wide.paste(255, (100, 0, 200, 100))
        wide.save(tmp_path / "a.png")
        assert probes(tmp_path, GREY)[0, 0, 4:24, 4:24].min() > 0.99

    def test_count_is_a_seeded_choice(self, folder: Path) -> None:
        first, again, other = (probes(folder, COLOUR, 3, seed) for seed in (1, 1, 2))
        assert len(first) == 3 and torch.equal(first, again) and not torch.equal(first, other)

    def test_a_path_as_text(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(folder.parent)
        assert torch.equal(probes(f"./{folder.name}", GREY), probes(str(folder), GREY))

    @pytest.mark.parametrize(
        "content", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
    )
    def test_a_broken_file_is_named(self, folder: Path, content: bytes) -> None:
        (folder / "bad.png").write_bytes(content)
        with pytest.raises(ArgumentError, match=r"bad\.png"):
            probes(folder, COLOUR)

    def test_a_bomb_is_refused(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1500)
        with pytest.raises(ArgumentError, match="at most 1,500 pixels"):
            probes(folder, COLOUR)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
        with pytest.raises(ArgumentError, match="at most 500 pixels"):
            probes(folder, COLOUR)

    def test_no_images(self, tmp_path: Path) -> None:
        with pytest.raises(ArgumentError, match="found none"):
            probes(tmp_path, COLOUR)
        with pytest.raises(ArgumentError, match="No such file"):
            probes(tmp_path / "none", COLOUR)

    def test_text_and_strange_channels_need_a_tensor(self, folder: Path) -> None:
        with pytest.raises(ArgumentError, match="tensor of token ids"):
            probes(folder, TEXT)
        with pytest.raises(ArgumentError, match="1 or 3 channels"):
            probes(folder, Images(4, 8, 8, (0.5,) * 4, (0.5,) * 4))


class Stream(list):
    """What `datasets.load_dataset(..., streaming=True)` gives, as far as it is used."""

    def shuffle(self, seed: int, buffer_size: int) -> Stream:
        return Stream(self[seed:] + self[:seed])


@pytest.fixture
def datasets(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A stand-in of the package: images under lab/images, ids under lab/ids."""
    calls: list[Any] = []
    rows = {
        "lab/images": [{"label": i, "picture": Image.new("L", (40, 40), 10 * i)} for i in range(9)],
        "lab/ids": [{"text": "x", "input_ids": list(range(i, 40 - i))} for i in range(9)],
        "lab/empty": [],
    }

    def load_dataset(name: str, split: str, streaming: bool, token: Any) -> Stream:
        calls.append((name, split, streaming, token))
        if name not in rows:
            raise FileNotFoundError(f"{name} does not exist\nlong story")
        return Stream(rows[name])

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return calls


class TestDataset:
    def test_images_are_streamed(self, datasets: list[Any]) -> None:
        found = probes("lab/images", GREY, 4, seed=1, token="hf_x")
        assert datasets == [("lab/images", "train", True, "hf_x")]
        torch.testing.assert_close(found[:, 0, 0, 0], torch.tensor([10, 20, 30, 40]) / 255)

    def test_a_split_may_be_named(self, datasets: list[Any]) -> None:
        assert len(probes("dataset:lab/images:test", COLOUR)) == 9
        assert datasets[0][1] == "test"

    def test_ids_are_taken_as_they_are(self, datasets: list[Any]) -> None:
        found = probes("dataset:lab/ids", Tokens(60, 30), 8)
        assert found.shape == (6, 30) and found[2, 0] == 2  # the short rows are left out

    def test_what_does_not_fit_is_named(self, datasets: list[Any]) -> None:
        for name, inputs, words in (
            ("lab/ids", COLOUR, "column of images.*text, input_ids"), ("lab/images", TEXT, "column `input_ids`.*label, picture"),
            ("lab/none", GREY, "FileNotFoundError: lab/none does not exist\\. Name"), ("lab/empty", GREY, "found none"),
            ("lab/ids", Tokens(9, 16), "from 0 to 8"),
        ):  # fmt: skip
            with pytest.raises(ArgumentError, match=words):
                probes(name, inputs)

    @pytest.mark.parametrize("name", ["a/b/c", "", "dataset:../x", "dataset:", "lab/..", "imagefolder:train"])
    def test_what_is_no_id_is_not_looked_up(
        self, datasets: list[Any], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "imagefolder").mkdir()
        with pytest.raises(ArgumentError, match="dataset id"):
            probes(name, GREY)
        assert datasets == []

    def test_a_missing_package_names_the_command(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(MissingExtraError, match=r"pip install 'hf_lineage\[papers\]'"):
            probes("lab/images", GREY)


class TestGiven:
    def test_images_pass_as_they_are(self) -> None:
        given = torch.randn(700, 3, 32, 24)
        assert torch.equal(probes(given, COLOUR), given)
        assert probes(given.double()[:2], COLOUR).dtype == torch.float32

    def test_grey_is_repeated_and_that_is_the_averaged_kernel(self) -> None:
        grey, kernel = torch.rand(2, 1, 32, 24), torch.randn(5, 3, 3, 3)
        found = probes(grey, COLOUR)
        assert found.shape == (2, 3, 32, 24)
        torch.testing.assert_close(
            torch.conv2d(found, kernel), 3 * torch.conv2d(grey, kernel.mean(1, keepdim=True)), rtol=1e-4, atol=1e-5
        )

    def test_ids_become_long(self) -> None:
        assert probes(torch.tensor([[1, 999]], dtype=torch.int32), TEXT).dtype == torch.int64

    def test_a_plain_module_takes_anything(self) -> None:
        for given in (torch.rand(3), torch.ones(2, 5, dtype=torch.int8), torch.rand(1, 2, 3, 4, 5)):
            assert probes(given, None) is given

    @pytest.mark.parametrize(
        ("given", "inputs", "words"),
        [
            (torch.rand(2, 3, 32, 25), COLOUR, r"\(n, 3, 32, 24\), got \(2, 3, 32, 25\)"),
            (torch.rand(2, 4, 32, 24), COLOUR, r"got \(2, 4, 32, 24\)"),
            (torch.rand(2, 3, 28, 28), GREY, r"got \(2, 3, 28, 28\)"),
            (torch.rand(3, 32, 24), COLOUR, "as floats"),
            (torch.ones(2, 3, 32, 24, dtype=torch.uint8), COLOUR, "as floats.*uint8"),
            (torch.rand(0, 3, 32, 24), COLOUR, "at least 1"),
            (torch.full((1, 3, 32, 24), float("nan")), COLOUR, "finite"),
            (torch.full((1, 3), float("inf")), None, "finite"),
            (torch.tensor(1.0), None, "first axis"),
            (torch.rand(2, 8), TEXT, "as integers"),
            (torch.ones(2, 8, dtype=torch.bool), TEXT, "as integers"),
            (torch.ones(8, dtype=torch.long), TEXT, "as integers"),
            (torch.ones(2, 17, dtype=torch.long), TEXT, "1 to 16"),
            (torch.ones(2, 0, dtype=torch.long), TEXT, "1 to 16"),
            (torch.tensor([[0, 1000]]), TEXT, "from 0 to 999, got 0 to 1000"),
            (torch.tensor([[-1, 5]]), TEXT, "got -1 to 5"),
        ],
    )
    def test_what_does_not_fit(self, given: torch.Tensor, inputs: Any, words: str) -> None:
        with pytest.raises(ArgumentError, match=words):
            probes(given, inputs)

    def test_a_plain_module_needs_them(self) -> None:
        with pytest.raises(ArgumentError, match="plain module"):
            probes(None, None)

    def test_another_kind_of_source(self) -> None:
        with pytest.raises(ArgumentError, match="got int"):
            probes(3, COLOUR)  # type: ignore[arg-type]
