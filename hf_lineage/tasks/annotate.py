"""`annotate`: an answer goes into the model's card, as a pull request, a commit, or by default as a diff to look at.

Read the card at one commit, edit its text, compare; only then write, on top of that commit. Whatever has to be tried
again is read again first, so that nothing is written twice.
"""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..answers.annotation import Annotation, Changed, write_files
from ..answers.base import READABLE
from ..answers.layers import LayerLineage
from ..answers.lineage import Lineage
from ..answers.refs import ModelRef
from ..errors import ArgumentError, CardError, HubUnavailableError, LineageError, Note
from ..report.bom import ancestors, cyclonedx, statement
from ..report.card import BLOCK, MAX_CARD, SURE_ENOUGH, current, decode, edit, wanted
from ..report.diff import diff
from ..report.privacy import is_local, public, renaming
from ..report.section import TITLE, asked, description, headline, licences, quoted, section
from .session import some

if TYPE_CHECKING:
    from ..hub.cards import CardRepository
    from ..hub.client import HubRepo

TRIES, WAIT = 3, 0.5  # of a write that was overtaken or lost; seconds before the next, doubled each time
BOM, INTOTO = "lineage/bom.cdx.json", "lineage/statement.intoto.json"


def annotate(
    child: str | Path | ModelRef, lineage: Lineage, *, layers: LayerLineage | None = None, create_pr: bool = False,
    push: bool = False, token: str | bool | None = None,
) -> Annotation:  # fmt: skip
    """Put an answer into the model's card: a section, and `base_model` where the card has none and it is sure.

    child: the model that `lineage` (and `layers`) is about: a repo id, or a folder. The card of `main` is annotated.
    Without `create_pr` and `push` nothing is written and nobody is asked who you are: look at `diff`. `create_pr`
    opens a pull request titled "Add model lineage", or updates yours; `push` commits to `main`, or writes into the
    folder. With it come `lineage.json`, pictures, a bill of materials and an in-toto statement. Every byte of the card
    outside our section and our lines of metadata stays, a declared `base_model` is never overwritten, and a second run
    with the same answer changes nothing. Of local models only the last folder name is shown.

    token: for the Hub, None is the machine's login.

    Raises `ArgumentError` (another model, both ways of writing at once), `CardError` (marks that are no pair, a card
    that is no UTF-8, too long or refused by the Hub), `AccessDeniedError` (no token, or not enough), and what reading
    raises: `ModelNotFoundError`, `HubUnavailableError`.
    """
    ref = ModelRef.parse(child)
    _check_decided(lineage)
    if create_pr and push:
        raise ArgumentError("Expected `create_pr` or `push`, got both. A pull request waits for the owner; a push not.")
    if layers is not None and layers.child.name != lineage.child.name:
        raise ArgumentError(f"Expected layers of `{lineage.child.name}`, got those of `{layers.child.name}`.")
    if ref.kind != lineage.child.kind or ref.kind == "module":
        raise ArgumentError(f"Expected the model that was traced, `{lineage.child.name}`, got `{ref}`.")
    if ref.kind == "hub":
        return _on_hub(ref, lineage, layers, create_pr, push, token)
    if create_pr:
        raise ArgumentError(f"Expected a repo on the Hub for a pull request, got the folder `{ref}`. Use `push`.")
    return _in_folder(ref, lineage, layers, push, token)


def _check_decided(lineage: Lineage) -> None:
    """Refuse an answer in which a candidate that could not be read may be the parent, and one in which the caller said
    who came first. Raises `CardError`."""
    if any(c.order_taken for c in lineage.candidates):
        raise CardError(
            "Expected an answer that rests on the weights alone, but that the candidates are older was taken from the "
            "caller: a card may not say that it was measured.",
            "Trace again without `older` (--older).",
        )
    unread = [c.ref for c in lineage.candidates if c.status == "unreadable"]
    if lineage.verdict == "undecided" and unread:
        raise CardError(
            f"Expected candidates that could be read, but {some(unread, 3)} could not, and may be the parent: a card "
            "that says nothing of it would mislead. Try again later, or name others."
        )


@dataclass(frozen=True)
class _Destination:
    """Where a card is: its bytes, and what can be asked of the files beside it."""

    card: bytes
    has: Callable[[str], bool]
    read: Callable[[str], bytes]
    digests: Callable[[], dict[str, str]]
    gated: Any = None


class _Draft:
    """An answer as it goes into a card: fit for the public, with what its parents' cards say of licences."""

    def __init__(self, lineage: Lineage, layers: LayerLineage | None, cards: Callable[[], CardRepository]) -> None:
        rename = renaming(lineage, layers)
        self.lineage = public(lineage, rename)
        self.layers = public(layers, rename) if layers is not None else None
        self.wanted = wanted(self.lineage, self.layers)
        confirmed = [claim for claim in lineage.claims if claim.status == "confirmed"]
        self.confirmed = {text for claim in confirmed for text in (claim.ref, claim.raw) if text}
        self.terms: dict[str, dict[str, Any] | None] = {}
        for ref, revision in ancestors(self.lineage, self.layers):
            if not is_local(ref) and not ref.startswith("module:"):
                self.terms[ref] = None
                with suppress(LineageError):  # gone, private or no network: then that is said
                    self.terms[ref] = cards().terms(ModelRef("hub", ref, revision))
        about = dict(self.terms)
        for c in asked(self.lineage):  # the others that the section names
            if c.ref not in about and c.revision and c.status == "compared":
                with suppress(LineageError):
                    about[c.ref] = cards().terms(ModelRef("hub", c.ref, c.revision))
        self.notes = [
            Note("private_model_named", f"{quoted(ref)} is private: the card would name it.")
            for ref, terms in about.items()
            if terms and terms.get("private")
        ]
        self.unsure: Note | None = None
        if lineage.verdict == "parent" and not self.wanted and lineage.candidates[0].probability is not None:
            probability = f"{lineage.candidates[0].probability:.3f}"
            self.unsure = Note(
                "base_model_not_added",
                f"No `base_model` is added: that takes a probability of {SURE_ENOUGH}, and this one is {probability}.",
            )
        if lineage.verdict == "identical" and not self.wanted:
            self.unsure = Note(
                "base_model_not_added",
                "No `base_model` is added: the two are equal, and which of them is the copy does not show.",
            )
        self.bom = importlib.util.find_spec("cyclonedx") is not None
        if not self.bom:
            missing, hint = "No bill of materials", "pip install 'hf_lineage[bom]'."
            self.notes.append(Note("no_bill_of_materials", f"{missing}.", hint, text=f"{missing}: {hint}"))

    def change(self, destination: _Destination) -> tuple[Annotation, str]:
        """What the card needs, not yet written; and the text of the pull request."""
        from ..checkpoints.texts import yaml_data

        def metadata(text: str) -> dict[str, Any]:
            block = BLOCK.search(text.removeprefix("\ufeff"))
            return yaml_data(block[2].encode()) if block else {}

        old = decode(destination.card)
        mine = {**metadata(old), "gated": destination.gated}
        remarks = [text for ref, terms in self.terms.items() for text in licences(mine, terms, ref)]
        new, notes = edit(
            old, section(self.lineage, self.layers, notes=remarks), self.wanted, yaml_data, self.confirmed
        )
        if new == old:
            return Annotation("", False), ""
        if self.unsure and "base_model" not in mine and not is_local(self.lineage.parent or "."):
            notes = [*notes, self.unsure]
        added = [key for key in metadata(new) if key not in mine]
        told = description(self.lineage, self.layers, notes=[*notes, *remarks], added=added)
        if current(old) is None:
            self._spare(destination)

        def make() -> dict[str, bytes]:
            return self._files(new.encode(), destination.digests())

        names = self._names()
        return Annotation(diff(old, new), True, None, names, (*self.notes, *notes), make, destination.card), told

    def _spare(self, destination: _Destination) -> None:
        """Raise `CardError` where somebody else's files have our names."""
        taken = [name for name in self._names() if name != "README.md" and destination.has(name)]
        with suppress(ValueError, RecursionError):
            data = json.loads(destination.read("lineage.json")) if "lineage.json" in taken else {}
            if isinstance(data, dict) and data.get("schema") in READABLE:  # of a section that was taken out
                return
        if taken:
            raise CardError(
                f"Expected no `{taken[0]}` beside a card without a section of ours, found one. Move it elsewhere."
            )

    def _names(self) -> tuple[str, ...]:
        layers = ("lineage/layers.json", "lineage/layers.png") if self.layers is not None else ()
        return ("README.md", "lineage.json", *((BOM,) if self.bom else ()), *layers, "lineage/lineage.png", INTOTO)

    def _files(self, card: bytes, digests: dict[str, str]) -> dict[str, bytes]:
        found = {
            "README.md": card,
            "lineage.json": _record(self.lineage),
            "lineage/lineage.png": _picture(self.lineage),
        }
        if self.layers is not None:
            found |= {"lineage/layers.json": _record(self.layers), "lineage/layers.png": _picture(self.layers)}
        if self.bom:
            found[BOM] = cyclonedx(self.lineage, self.layers, digests).encode()
        found[INTOTO] = statement(self.lineage, self.layers, digests).encode()
        return {name: found[name] for name in self._names()}


def _on_hub(
    ref: ModelRef, lineage: Lineage, layers: LayerLineage | None, create_pr: bool, push: bool,
    token: str | bool | None,
) -> Annotation:  # fmt: skip
    from ..hub.cards import CardRepository, Lost, Stale

    cards = CardRepository(token)
    me = cards.me() if create_pr else ""
    if push:
        cards.need_token()
    draft: _Draft | None = None
    sent: Annotation | None = None  # what was sent without an answer
    for attempt in range(TRIES):
        repo = cards.repo(ref.repo_id)
        name = repo.ref.name
        for answer in (lineage, layers) if layers is not None else (lineage,):
            _check_child(cards, repo.ref, answer)
        draft = draft or _Draft(lineage, layers, lambda: cards)
        found, text = draft.change(_in_repo(cards, repo, lineage))
        if not (create_pr or push):
            return found
        pull = cards.pull_request(name, TITLE, me) if create_pr and found.changed else None
        if pull is not None:
            repo = cards.repo(name, pull.ref)
            found, text = draft.change(_in_repo(cards, repo, lineage))
        head = str(repo.ref.revision)
        if not found.changed:
            url = pull.url if pull else f"{cards.hub.endpoint}/{name}/commit/{head}" if sent else None
            return replace(sent or found, url=url)
        try:
            url = cards.commit(
                name, found.make(), title="Update model lineage" if pull else TITLE,
                text=text if create_pr else headline(draft.lineage, draft.layers, quoted), parent=head,
                revision=pull.ref if pull else None, create_pr=create_pr and pull is None,
            )  # fmt: skip
            return replace(found, url=pull.url if pull else url)
        except Stale:
            why = "the repo changed meanwhile"
        except Lost as error:
            sent, why = found, f"no answer, {error}"
            time.sleep(WAIT * 2**attempt)
    raise HubUnavailableError(
        f"The change of `{ref.name}` was not confirmed in {TRIES} tries ({why}). Run again: nothing is written twice."
    )


def _in_repo(cards: CardRepository, repo: HubRepo, lineage: Lineage) -> _Destination:
    traced = ModelRef("hub", repo.ref.name, lineage.child.revision or repo.ref.revision)
    return _Destination(
        cards.card(repo, MAX_CARD), repo.files.__contains__, lambda name: repo.read_optional(name, MAX_CARD),
        lambda: cards.digests(traced), cards.terms(repo.ref)["gated"],
    )  # fmt: skip


def _check_child(cards: CardRepository, ref: ModelRef, lineage: Lineage | LayerLineage) -> None:
    """The card of a repo may say what was found in its weights only while they are the same."""
    if ref.name != lineage.child.repo_id:
        raise ArgumentError(f"Expected the model that was traced, `{lineage.child.name}`, got `{ref.name}`.")
    traced = lineage.child.revision
    if traced and traced != ref.revision:
        was, now = cards.weights(ModelRef("hub", ref.name, traced)), cards.weights(ref)
        if was != now:
            raise ArgumentError(
                f"Expected the weights that were traced, of `{ref.name}@{traced[:10]}`, but those of `main` are others "
                f"({str(ref.revision)[:10]}). Trace it again."
            )


def _in_folder(
    ref: ModelRef, lineage: Lineage, layers: LayerLineage | None, push: bool, token: str | bool | None
) -> Annotation:
    from ..hub.cards import CardRepository, folder_digests

    folder, traced = (Path(os.path.realpath(os.path.expanduser(name))) for name in (ref.name, lineage.child.name))
    if folder != traced:
        raise ArgumentError(f"Expected the model that was traced, `{lineage.child.name}`, got `{ref.name}`.")
    if not folder.is_dir():
        raise ArgumentError(f"Expected a folder with a model, got `{ref.name}`.")
    draft = _Draft(lineage, layers, lambda: CardRepository(token))
    for attempt in range(TRIES):
        destination = _Destination(
            _read(folder / "README.md"), lambda name: os.path.lexists(folder / name),
            lambda name: _read(folder / name), lambda: folder_digests(folder),
        )  # fmt: skip
        found, _ = draft.change(destination)
        if not (push and found.changed):
            break
        try:
            write_files(folder, found.make(), found.before.__eq__)
            return replace(found, url=(folder / "README.md").as_uri())
        except Changed as error:  # somebody edits it: their text is read again, and kept
            if attempt == TRIES - 1:
                raise CardError(f"{error} It changes again and again: run again later.") from error
    return found


def _record(answer: Lineage | LayerLineage) -> bytes:
    """Its JSON without what differs from run to run."""
    data = answer.to_dict()
    told = {name: data[name] for name in data if name not in ("seconds", "bytes_read")}
    return (json.dumps(told, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode(errors="replace")


def _picture(answer: Lineage | LayerLineage) -> bytes:
    with tempfile.TemporaryDirectory(prefix="hf-lineage-") as folder:
        path = Path(folder) / "picture.png"
        answer.plot(path)
        return path.read_bytes()


def _read(path: Path) -> bytes:
    """A card on this machine; empty where there is none."""
    try:
        if not path.exists():
            return b""
        if not path.is_file():
            raise CardError(f"Expected a file at `{path}`, found something else.")
        with path.open("rb") as file:
            raw = file.read(MAX_CARD + 1)
            size = os.fstat(file.fileno()).st_size
        if len(raw) != min(size, MAX_CARD + 1):
            raise CardError(f"Expected the {size:,} bytes of `{path}`, got {len(raw):,}: it changed. Run again.")
        return raw
    except OSError as error:
        raise CardError(f"Expected to read `{path}`, got: {error.strerror}.") from error
