"""Probe inputs: synthetic, from a folder, from a dataset of the Hub, or given; the only home of datasets.

Two networks are compared on the same probes; that they are the same matters more than what they show.
Colour and grey: a grey channel is repeated for a network that reads colour. Its stem then computes Σ_c W_c x, which
is the kernel averaged over its input channels times their number: a scale that parent and child share.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..answers.refs import is_repo_id, printable
from ..errors import ArgumentError, MissingExtraError
from .networks import Images, Tokens

if TYPE_CHECKING:
    from PIL.Image import Image

DEFAULT_COUNT = 512  # the paper's
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # PIL knows more, of which some start programs
MODES = {1: "L", 3: "RGB"}


def probes(
    source: str | Path | Tensor | None,
    inputs: Images | Tokens | None,
    count: int = DEFAULT_COUNT,
    seed: int = 0,
    token: str | bool | None = None,
) -> Tensor:
    """(n, channels, height, width) standardised images or (n, length) token ids, n ≤ `count` unless they are given.

    source: None, pink noise or ids by Zipf's law; a folder (`Path`, `"./…"`), its images; a dataset of the Hub
    (`"org/name"`, `"dataset:org/name:split"`, split `train` if none), its first image column or its `input_ids`;
    a tensor, which is checked and taken as it is. The same seed gives the same probes.
    Raises `ArgumentError` for a source that does not give what the network reads.
    """
    if isinstance(source, Tensor):
        return _given(source, inputs)
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ArgumentError(f"Expected a number of probes of at least 1, got {count!r}.")
    if inputs is None:
        raise ArgumentError("Expected probes as a tensor for a plain module, got none. Pass what its forward takes.")
    if source is None:
        return _pink(inputs, count, seed) if isinstance(inputs, Images) else _zipf(inputs, count, seed)
    if isinstance(source, Path) or (isinstance(source, str) and source[:1] in {".", "/", "~"}):
        return _folder(Path(source), inputs, count, seed)
    if isinstance(source, str):
        return _dataset(source, inputs, count, seed, token)
    raise ArgumentError(f"Expected a folder, a dataset id, a tensor or None as probes, got {type(source).__name__}.")


# ---- given


def _given(tensor: Tensor, inputs: Images | Tokens | None) -> Tensor:
    if tensor.ndim < 1 or tensor.shape[0] < 1:
        raise ArgumentError(f"Expected probes with a first axis of at least 1, got shape {tuple(tensor.shape)}.")
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise ArgumentError("Expected finite probes, got NaN or Inf in them.")
    if isinstance(inputs, Images):
        return _given_images(tensor, inputs)
    return _given_tokens(tensor, inputs) if isinstance(inputs, Tokens) else tensor


def _given_images(tensor: Tensor, inputs: Images) -> Tensor:
    wanted = (inputs.channels, inputs.height, inputs.width)
    if not tensor.is_floating_point() or tensor.ndim != 4:
        raise ArgumentError(
            f"Expected images as floats of shape (n, {', '.join(map(str, wanted))}), got {tensor.dtype} of shape "
            f"{tuple(tensor.shape)}."
        )
    if tensor.shape[1] == 1 and tuple(tensor.shape[2:]) == wanted[1:]:
        tensor = tensor.expand(-1, inputs.channels, -1, -1)
    if tuple(tensor.shape[1:]) != wanted:
        raise ArgumentError(f"Expected images of shape (n, {', '.join(map(str, wanted))}), got {tuple(tensor.shape)}.")
    return tensor.float().contiguous()


def _given_tokens(tensor: Tensor, inputs: Tokens) -> Tensor:
    whole = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
    if not whole or tensor.ndim != 2 or not 1 <= tensor.shape[1] <= inputs.length:
        raise ArgumentError(
            f"Expected token ids as integers of shape (n, 1 to {inputs.length}), got {tensor.dtype} of shape "
            f"{tuple(tensor.shape)}."
        )
    tensor = tensor.long()
    if int(tensor.min()) < 0 or int(tensor.max()) >= inputs.vocabulary:
        raise ArgumentError(
            f"Expected token ids from 0 to {inputs.vocabulary - 1}, got {int(tensor.min())} to {int(tensor.max())}."
        )
    return tensor


# ---- made up


def _pink(inputs: Images, count: int, seed: int) -> Tensor:
    """Noise whose amplitude falls like 1/frequency, as in photographs; brightness and hue vary from image to image."""
    generator = torch.Generator().manual_seed(seed)
    channels, height, width = inputs.channels, inputs.height, inputs.width
    vertical, horizontal = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]
    frequency = (vertical.square() + horizontal.square()).sqrt()  # (height, width // 2 + 1)
    fall = torch.where(frequency > 0, 1 / frequency.clamp(min=1 / max(height, width)), 0.0)
    result = torch.empty(count, channels, height, width)
    for image in result:  # one by one: a transform of all takes several times their memory
        noise = torch.randn(channels + 1, height, width, generator=generator)
        shapes = torch.fft.irfft2(torch.fft.rfft2(noise) * fall, s=(height, width))
        shapes = shapes / shapes.std(dim=(1, 2), keepdim=True, correction=0).clamp(min=1e-6)
        contrast, colour, *light = torch.rand(2 + channels, generator=generator)
        mixed = shapes[:1] + 0.5 * colour * shapes[1:]  # one light, and less of each colour's own
        image.copy_(0.3 + 0.4 * torch.stack(light)[:, None, None] + (0.05 + 0.25 * contrast) * mixed)
    return _standardise(result.clamp_(0, 1), inputs)


def _zipf(inputs: Tokens, count: int, seed: int) -> Tensor:
    """Ids with P(id) ∝ 1/(id + 1): vocabularies are sorted by frequency, roughly. Shape (count, length)."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.arange(1, inputs.vocabulary + 1, dtype=torch.float64).reciprocal().cumsum(0)
    chosen = torch.rand(count, inputs.length, generator=generator, dtype=torch.float64) * steps[-1]
    return torch.searchsorted(steps, chosen).clamp(max=inputs.vocabulary - 1)


def _standardise(pixels: Tensor, inputs: Images) -> Tensor:
    """[0, 1] → (x − mean) / std per channel, in place."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (inputs.mean, inputs.std))
    return pixels.sub_(mean).div_(std)


# ---- pictures


def _folder(folder: Path, inputs: Images | Tokens, count: int, seed: int) -> Tensor:
    """Images of a folder: sorted by name, `count` of them chosen by the seed, cut to the network's size."""
    if isinstance(inputs, Tokens):
        raise ArgumentError(f"Expected token ids for a network that reads text, got the folder `{folder}`. {_AS_IDS}")
    folder = folder.expanduser()
    try:
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in ENDINGS and file.is_file())
    except OSError as error:
        raise ArgumentError(f"Expected a folder of images at `{folder}`, got: {error.strerror}.") from error
    if not files:
        raise ArgumentError(f"Expected images ({', '.join(ENDINGS[:4])}, …) in `{folder}`, found none.")
    if len(files) > count:
        files = sorted(random.Random(seed).sample(files, count))
    return _stack(((str(file), file) for file in files), inputs)


def _stack(pictures: Iterable[tuple[str, Any]], inputs: Images) -> Tensor:
    """Named files or PIL images → (n, channels, height, width)."""
    from PIL import Image as pil

    mode = MODES.get(inputs.channels)
    if mode is None:
        raise ArgumentError(
            f"Expected a network of 1 or 3 channels for image files, got {inputs.channels}. Pass a tensor."
        )
    result = []
    for name, picture in pictures:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", pil.DecompressionBombWarning)
                if isinstance(picture, Path):
                    with pil.open(picture, formats=FORMATS) as opened:
                        result.append(_pixels(opened, mode, inputs))
                else:
                    result.append(_pixels(picture, mode, inputs))
        except (pil.DecompressionBombWarning, pil.DecompressionBombError) as error:
            raise ArgumentError(
                f"Expected images of at most {pil.MAX_IMAGE_PIXELS:,} pixels, `{name}` has more."
            ) from error
        except Exception as error:  # decoders fail in every way on foreign bytes
            raise ArgumentError(
                f"Expected an image in `{name}`, got {type(error).__name__}: {printable(str(error))[:200]}."
            ) from error
    return _standardise(torch.stack(result), inputs)


def _pixels(picture: Image, mode: str, inputs: Images) -> Tensor:
    """The middle of a picture, its shorter side fitted: (channels, height, width) in [0, 1]."""
    import numpy as np
    from PIL import ImageOps
    from PIL.Image import Resampling

    if picture.mode.startswith("I;16"):  # PIL would clip 16 bits, not scale them
        picture = picture.point(lambda value: value / 256).convert("L")
    fitted = ImageOps.fit(picture.convert(mode), (inputs.width, inputs.height), Resampling.BICUBIC)
    return torch.from_numpy(np.array(fitted)).view(inputs.height, inputs.width, -1).permute(2, 0, 1) / 255


# ---- datasets


_AS_IDS = "Pass a tensor of token ids, made with the network's own tokenizer."


def _dataset(name: str, inputs: Images | Tokens, count: int, seed: int, token: str | bool | None) -> Tensor:
    """The first rows after a seeded shuffle of a streamed dataset: about twice `count` rows are fetched."""
    name, _, split = name.removeprefix("dataset:").partition(":")
    if not is_repo_id(name) or Path(name).exists():  # which datasets would read instead
        here = "a folder here, which starts with `./`" if is_repo_id(name) else repr(printable(name)[:120])
        raise ArgumentError(f"Expected a dataset id such as `org/name` as probes, got {here}.")
    try:
        import datasets
    except ImportError as error:
        needed = f"Probes from the dataset `{name}` need the package datasets"
        raise MissingExtraError(needed, "papers") from error
    try:
        stream = datasets.load_dataset(name, split=split or "train", streaming=True, token=token)
        rows = list(islice(stream.shuffle(seed=seed, buffer_size=2 * count), count))
    except Exception as error:  # its errors come from many libraries, and all mean that there are no rows
        reason = printable(str(error).strip().partition("\n")[0])[:200]
        raise ArgumentError(
            f"Expected rows of the dataset `{name}`, got {type(error).__name__}: {reason}.",
            "Name a split as `dataset:org/name:split`; a local folder starts with `./`, `/` or `~`.",
        ) from error
    if not rows:
        raise ArgumentError(f"Expected rows in the dataset `{name}`, found none.")
    if isinstance(inputs, Tokens):
        return _ids(name, rows, inputs)
    from PIL.Image import Image

    column = next((key for key, value in rows[0].items() if isinstance(value, Image)), None)
    if column is None:
        raise ArgumentError(f"Expected a column of images in the dataset `{name}`, found {', '.join(rows[0])}.")
    return _stack(((f"row {index} of {name}", row[column]) for index, row in enumerate(rows)), inputs)


def _ids(name: str, rows: Sequence[dict[str, Any]], inputs: Tokens) -> Tensor:
    """`input_ids` of rows that are long enough, cut to one length."""
    if "input_ids" not in rows[0]:
        raise ArgumentError(
            f"Expected a column `input_ids` in the dataset `{name}`, found {', '.join(rows[0])}. {_AS_IDS}"
        )
    length = min(inputs.length, max(len(row["input_ids"]) for row in rows))
    whole = [list(row["input_ids"][:length]) for row in rows if len(row["input_ids"]) >= length]
    return _given_tokens(torch.tensor(whole), inputs)
