"""The tasks of the families: images of glyphs, and the documentation of the standard library.

Nothing is downloaded. The glyphs come from the fonts that matplotlib ships, the text from docstrings and from
the topics behind Python's `help()`. Every task is drawn from a seed, so the same seed gives the same tensors.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import re
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

ALPHABETS = {
    "lower": "abcdefghijklmnopqrstuvwxyz",
    "upper": "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "greek": "αβγδεζηθικλμνξοπρστυφχψω",
    "cyrillic": "абвгдежзийклмнопрстуфхцчшщъыьэюя",
    "few-upper": "ABEFGHKMNPRSTWX",
    "few-lower": "abdefghkmnrstwxz",
    "few-greek": "αβγδεζηθλμξπσφψω",
    "few-cyrillic": "абвгджзиклмфцшыэ",
    "signs": "#$%&(+/<=?@[{~",  # from here on every task has its own number of classes
    "letters": "bdfghkmprtwxz",
    "capitals": "ΓΔΘΛΞΠΣΦΨΩБЖ",
    "slavic": "БДЖИЦЧШЫЭЮЯ",
    "digits": "0123456789",
}
_FONTS = re.compile(r"DejaVu(Sans|SansMono|Serif)(-\w+)?\.ttf|STIXGeneral\w*\.ttf|cm(r|b|ss|tt|ti)10\.ttf")
_CANVAS = 56  # glyphs are drawn once at twice the image's size, then warped down to it
SIDE = 28  # pixels of an image's edge


@dataclass(frozen=True, slots=True)
class Task:
    """Inputs and labels; `classes` is the width of the head. For causal text a label is the next token."""

    name: str
    classes: int
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


@functools.cache
def atlas(alphabet: str) -> Tensor:
    """Each glyph in each font that has all of them: (glyphs, fonts, 56, 56), ink 1 on 0."""
    import matplotlib
    from matplotlib.ft2font import FT2Font
    from PIL import ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    drawn = []
    for path in sorted(path for path in folder.iterdir() if _FONTS.fullmatch(path.name)):
        if all(FT2Font(str(path)).get_char_index(ord(glyph)) for glyph in ALPHABETS[alphabet]):
            font = ImageFont.truetype(str(path), 46)
            drawn.append(torch.stack([_draw(glyph, font) for glyph in ALPHABETS[alphabet]]))
    return torch.stack(drawn, dim=1)


def _draw(glyph: str, font: object) -> Tensor:
    """One glyph, the middle of its ink in the middle of the canvas: (56, 56)."""
    from PIL import Image, ImageDraw

    image = Image.new("L", (_CANVAS, _CANVAS))
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = draw.textbbox((0, 0), glyph, font=font)  # type: ignore[arg-type]
    corner = ((_CANVAS - left - right) / 2, (_CANVAS - top - bottom) / 2)
    draw.text(corner, glyph, fill=255, font=font)  # type: ignore[arg-type]
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(_CANVAS, _CANVAS) / 255


def _images(alphabet: str, count: int, generator: torch.Generator, side: int) -> tuple[Tensor, Tensor]:
    """Jittered, noisy glyphs, about standardised, and their classes: (count, 1, side, side) and (count,)."""
    glyphs = atlas(alphabet)
    labels = torch.randint(len(glyphs), (count,), generator=generator)
    fonts = torch.randint(glyphs.shape[1], (count,), generator=generator)
    turn, zoom, shear, right, down = torch.rand(5, count, generator=generator) * 2 - 1
    turn, zoom, shear = turn * math.radians(8), 1 + 0.1 * zoom, 0.1 * shear
    cos, sin = turn.cos() / zoom, turn.sin() / zoom
    rows = torch.stack([cos, shear * cos - sin, 0.06 * right, sin, shear * sin + cos, 0.06 * down], dim=1)
    grid = F.affine_grid(rows.view(-1, 2, 3), [count, 1, side, side], align_corners=False)
    ink = F.grid_sample(glyphs[labels, fonts].unsqueeze(1), grid, align_corners=False)
    noise = torch.randn(ink.shape, generator=generator)
    return (ink + 0.05 * noise - 0.15) / 0.32, labels


@functools.lru_cache(maxsize=16)
def image_task(alphabet: str, seed: int, train: int = 4096, test: int = 1000, side: int = SIDE) -> Task:
    """Name the glyph: two independent draws, so no test image was seen in training."""
    generator = torch.Generator().manual_seed(seed)
    train_x, train_y = _images(alphabet, train, generator, side)
    test_x, test_y = _images(alphabet, test, generator, side)
    return Task(alphabet, len(ALPHABETS[alphabet]), train_x, train_y, test_x, test_y)


def part_of(task: Task, shots: int | None = None, cut: float = 1.0) -> Task:
    """The same test, and of the training images `shots` of each class, or the share `cut` of the second half of the
    classes (Neural Lineage, §5.1: the last 5 of CIFAR10's 10 classes cut to a tenth)."""
    if shots is None and cut == 1.0:
        return task
    most = torch.full((task.classes,), len(task.train_y) if shots is None else shots)
    if cut < 1:
        counts = torch.bincount(task.train_y, minlength=task.classes)
        late = torch.arange(task.classes) >= task.classes // 2
        most = torch.where(late, (cut * counts).ceil().long(), most)
    places = (
        F.one_hot(task.train_y, task.classes).cumsum(0).gather(1, task.train_y[:, None])[:, 0]
    )  # 1, 2, … in its class
    kept = places <= most[task.train_y]
    return replace(task, train_x=task.train_x[kept], train_y=task.train_y[kept])


MODULES = {  # imported and read, nothing of them is called; each group is a subject that shows in its words
    "containers": "array bisect collections copy dataclasses enum functools heapq itertools types weakref",
    "files": "fileinput glob gzip io mmap os pathlib shutil tarfile tempfile zipfile",
    "network": "ftplib http.client http.cookiejar imaplib smtplib socket socketserver ssl urllib.request",
    "numbers": "_pydecimal cmath decimal fractions math numbers random statistics",
    "text": "configparser csv difflib email.header email.message gettext html.parser re string textwrap",
    "dates": "calendar datetime locale sched time zoneinfo",
    "workers": "asyncio multiprocessing.managers multiprocessing.pool queue subprocess threading",
    "code": "ast bdb code contextlib dis inspect pkgutil pyclbr symtable tokenize traceback",
    "checks": "argparse cmd doctest logging optparse pdb unittest.case unittest.mock",
    "markup": "html pydoc xml.dom.minidom xml.etree.ElementTree xml.sax.handler xml.sax.saxutils",
}


@functools.cache
def documentation(group: str) -> str:
    """Each docstring of the group's modules, their classes and their functions, once, as ASCII."""
    texts: dict[str, None] = {}
    for name in MODULES[group].split():
        module = importlib.import_module(name)
        classes = [value for _, value in sorted(vars(module).items()) if inspect.isclass(value)]
        for owner in (module, *classes):
            for value in (owner, *(value for _, value in sorted(vars(owner).items()) if callable(value))):
                if isinstance(value.__doc__, str):
                    texts[inspect.cleandoc(value.__doc__)] = None
    return "\n\n".join(texts).encode("ascii", "ignore").decode()


def _windows(tokens: Tensor, length: int, counts: tuple[int, int], order: torch.Generator) -> list[Tensor]:
    """Pieces that start anywhere inside blocks of 320 tokens; every tenth block is for the test."""
    blocks = tokens[: len(tokens) // 320 * 320].view(-1, 320)
    fresh = torch.arange(len(blocks)) % 10 == 4
    drawn = []
    for part, count in zip((blocks[~fresh], blocks[fresh]), counts, strict=True):
        rows = torch.randint(len(part), (count, 1), generator=order)
        starts = torch.randint(320 - length + 1, (count, 1), generator=order)
        drawn.append(part[rows, starts + torch.arange(length)])
    return drawn


@functools.lru_cache(maxsize=8)
def text_task(groups: str, seed: int, vocab: int, train: int = 8192, test: int = 256) -> Task:
    """Guess the next byte of the groups' documentation ("files+text")."""
    text = "\n\n".join(documentation(group) for group in groups.split("+"))
    tokens = torch.tensor(list(text.encode()))
    seen, fresh = _windows(tokens, 65, (train, test), torch.Generator().manual_seed(seed))
    return Task(groups, vocab, seen[:, :-1], seen[:, 1:], fresh[:, :-1], fresh[:, 1:])


@functools.lru_cache(maxsize=8)
def topic_task(groups: str, seed: int, vocab: int, train: int = 2048, test: int = 256) -> Task:
    """Tell from 64 hashed words which of the groups they document."""
    generator = torch.Generator().manual_seed(seed)
    seen: list[Tensor] = []
    fresh: list[Tensor] = []
    for group in groups.split("+"):
        words = re.findall(r"\w+|[^\w\s]", documentation(group).lower())
        tokens = torch.tensor([zlib.crc32(word.encode()) % vocab for word in words])
        for part, drawn in zip((seen, fresh), _windows(tokens, 64, (train, test), generator), strict=True):
            part.append(drawn)
    labels = torch.arange(len(seen))
    return Task(
        groups, len(seen), torch.cat(seen), labels.repeat_interleave(train),
        torch.cat(fresh), labels.repeat_interleave(test),
    )  # fmt: skip
