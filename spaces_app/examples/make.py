"""Make the examples of this folder again, without the Hub: on the stand-in of `hf_lineage.testing`.

    hf-lineage demo --out FAMILY
    python spaces_app/examples/make.py FAMILY [SOURCES]

FAMILY: twelve small networks, one card of which lies; `average` is 0.6 of one of its children and 0.4 of another's.
What is kept has no commits and no links: the models are nowhere on the Hub.
SOURCES: `train_family(SOURCES, "vit", roots=9, children=0, seed=31, sizes={"depth": 12, "mlp_ratio": 2})` of
`hf_lineage.experiments.families`, for the examples of layers; without it those are left as they are.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_lineage.testing import MiniHub

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))


def main(family: Path, sources: Path | None = None) -> None:
    """Ask the questions of the examples and keep their views."""
    from hf_lineage.testing import MiniHub

    with MiniHub() as hub, tempfile.TemporaryDirectory() as folder:
        os.environ.update(hub.environment())  # before the client is imported
        _share(hub, family, Path(folder))
        import asking
        from show import View, view_of

        def keep(name: str, view: View) -> None:
            text = json.dumps(view, ensure_ascii=False)
            (HERE / f"{name}.json").write_text(text + "\n", encoding="utf-8")
            print(name, f"{len(text):,} characters:", view["sentence"])

        def quiet(done: int, total: int, what: str) -> None:
            return None

        def asked(question: Any, *given: Any) -> Any:
            return unpinned(question(*given, False, quiet))

        roots = [f"example/fc-root-{i}" for i in range(3)]
        for name, child in (("lie", "1-0"), ("none", "3-0"), ("origin", "2-0")):
            keep(f"trace-{name}", view_of(asked(asking.trace, f"example/fc-child-{child}", roots)))
        for name, other in (("related", "fc-child-1-0"), ("unrelated", "fc-root-2")):
            keep(f"compare-{name}", view_of(asked(asking.compare, "example/fc-root-1", f"example/{other}")))
        models = sorted(name for name in hub.repos if name.startswith("example/fc-") or name == "example/average")
        keep("tree-family", asking.tree_view(asked(asking.tree, models)))
        if sources:
            for name, parents in _merges(hub, sources).items():
                keep(f"layers-{name}", asking.layers_view(asked(asking.layers, f"example/{name}", parents)))
            by_features = asked(asking.layers_by, "example/hybrid", parents, asking.evidence("features", candidates=4))
            keep("layers-features", asking.layers_view(by_features))


def unpinned(value: Any) -> Any:
    """An answer without commits: these models are not on the Hub, and what has no commit gets no link."""
    if isinstance(value, tuple | list):
        return type(value)(map(unpinned, value))
    if not is_dataclass(value) or not type(value).__module__.startswith("hf_lineage.answers."):
        return value
    given: dict[str, Any] = {field.name: unpinned(getattr(value, field.name)) for field in fields(value) if field.init}
    none: dict[str, Any] = {"revision": None, "revisions": {}}
    return replace(value, **given | {name: nothing for name, nothing in none.items() if name in given})  # type: ignore[type-var]


def _share(hub: MiniHub, family: Path, folder: Path) -> None:
    """The family as repos, and an average of two of its children."""
    from safetensors.torch import load_file, save_file

    home = family / "family" if (family / "family").is_dir() else family
    for path in sorted(home.glob("fc-*")):
        card = (path / "README.md").read_text().replace("family/", "example/").encode() if path.is_dir() else b""
        hub.add_folder(f"example/{path.name}", path)
        hub.commit(f"example/{path.name}", {"README.md": card})
    one, other = (load_file(home / f"fc-child-{i}-1" / "model.safetensors") for i in (0, 1))
    shared = {name for name in one if name in other and one[name].shape == other[name].shape}
    save_file({name: 0.6 * one[name] + 0.4 * other[name] for name in shared}, folder / "average.safetensors")
    hub.add("example/average", {"model.safetensors": folder / "average.safetensors"})


def _merges(hub: MiniHub, sources: Path) -> dict[str, list[str]]:
    """A hybrid of three ViTs, tuned by nobody, and a weighted sum of two."""
    from safetensors.torch import load_file, save

    from hf_lineage.experiments.merges import hybrid, linear

    names = [f"vit-root-{i}" for i in range(4)]
    models = [load_file(sources / "family" / name / "model.safetensors") for name in names]
    config = (sources / "family" / names[0] / "config.json").read_bytes()
    for name, tensors in zip(names, models, strict=True):
        hub.add(f"example/{name}", {"model.safetensors": save(tensors), "config.json": config})
    choice = dict.fromkeys(range(4, 8), 1) | dict.fromkeys((9, 10), 2)
    hub.add("example/hybrid", {"model.safetensors": save(hybrid(models, choice)), "config.json": config})
    trunks = [{name: t for name, t in tensors.items() if not name.startswith("head")} for tensors in models]
    hub.add("example/merge", {"model.safetensors": save(linear(trunks[:2], [0.7, 0.3])), "config.json": config})
    refs = [f"example/{name}" for name in names]
    return {"hybrid": refs, "merge": refs}


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
