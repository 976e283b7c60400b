"""Adaptive reading: a few hidden units first. What they show, what is read of whom, and that no answer suffers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from safetensors.torch import save

import hf_lineage as hl
from hf_lineage.errors import ArgumentError
from hf_lineage.tasks import screen
from hf_lineage.testing import MiniHub
from hf_lineage.weights.proof import log10_e_value, log10_mean, log_e_on_grid
from hf_lineage.weights.unit_runs import CHANCE, LOOKS, RUN, Run, UnitsEvidence, decide, draw_runs, evidence_of

WIDTH, LAYERS = 64, 16
SAMPLE = 192 << 10  # bytes, in place of 4 MB: the models are small
Tensors = dict[str, torch.Tensor]


def rows(seed: int, count: int, width: int = 256) -> list[torch.Tensor]:
    made = torch.randn(count, RUN * width, generator=torch.Generator().manual_seed(seed))
    return [*made]


def runs(count: int, width: int = 256) -> list[Run]:
    return [Run(str(i), "w", 0, width) for i in range(count)]


def shown(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> UnitsEvidence:
    return evidence_of(runs(len(ours)), ours, theirs)


class TestEvidence:
    def test_many_small_orders_at_once_have_the_value_of_each_by_itself(self) -> None:
        c = np.random.default_rng(0).normal(size=(5, RUN, RUN)) ** 3
        logs = log_e_on_grid(c)
        assert log10_mean(logs.sum(0)) == pytest.approx(log10_e_value([each[None] for each in c]), abs=1e-9)
        assert (log_e_on_grid(np.ones((1, RUN, RUN))) == 0).all(), "where all matchings give the same"

    def test_a_relative_is_shown_by_sixteen_units(self) -> None:
        ours = rows(1, 4)
        theirs = [a + 0.3 * b for a, b in zip(ours, rows(2, 4), strict=True)]
        assert shown(ours, theirs).log10_e > 5

    def test_all_matchings_of_a_run_have_mean_at_most_one(self) -> None:
        """Exact: the mean over all 24 matchings of the second model's units, of runs with ties and dead units."""
        for case in range(30):
            a, b = rows(case, 1, 5)[0].reshape(RUN, 5), rows(100 + case, 1, 5)[0].reshape(RUN, 5)
            if case % 3 == 0:
                a[1] = a[0]
            if case % 5 == 0:
                b[2] = 1.0
            e = [
                10 ** evidence_of(runs(1, 5), [a.flatten()], [b[[*order]].flatten()]).log10_e
                for order in itertools.permutations(range(RUN))
            ]
            assert np.mean(e) <= 1 + 1e-9, case

    def test_unrelated_runs_are_seldom_alike(self) -> None:
        found = shown(rows(3, 400), rows(4, 400))
        assert found.alike / 400 < CHANCE + 3 * (CHANCE / 400) ** 0.5
        assert decide(shown(rows(3, LOOKS[1]), rows(4, LOOKS[1])), LOOKS[1], 5.4) == "unrelated"

    def test_the_share_that_is_alike_has_an_interval(self) -> None:
        ours = rows(5, 24)
        found = shown(ours, [*ours[:6], *rows(6, 18)])
        assert found.share_low < 0.25 < found.share_high
        whole = shown(ours[:16], ours[:16])
        assert whole.share_low > 0.82 and whole.share_high == 1.0

    def test_who_has_a_quarter_in_common_is_not_left(self) -> None:
        kept = 0
        for seed in range(20):
            ours = rows(seed, 24)
            kept += decide(shown(ours, [*ours[:6], *rows(50 + seed, 18)]), 24, 5.4) != "unrelated"
        assert kept == 20

    def test_nobody_is_left_before_all_looks_are_due(self) -> None:
        assert decide(shown(rows(3, 16), rows(4, 16)), 16, 5.4) == "open"


def bare(seed: int) -> Tensors:
    """A network of many equal layers, large enough that a sample of it is read."""
    g = torch.Generator().manual_seed(seed)
    made = {"embed.weight": torch.randn(1000, WIDTH, generator=g)}
    for i in range(LAYERS):
        made[f"layers.{i}.fc1.weight"] = torch.randn(4 * WIDTH, WIDTH, generator=g)
        made[f"layers.{i}.fc2.weight"] = torch.randn(WIDTH, 4 * WIDTH, generator=g)
    return {name: tensor.bfloat16() for name, tensor in made.items()}


def tuned(base: Tensors, seed: int) -> Tensors:
    g = torch.Generator().manual_seed(seed)
    return {
        n: (t.float() + 0.01 * torch.randn(t.shape, generator=g) * (torch.rand(t.shape, generator=g) < 0.3)).bfloat16()
        for n, t in base.items()
    }


@pytest.fixture
def wide(hub: MiniHub, shelf: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> MiniHub:
    monkeypatch.setattr("hf_lineage.weights.sampling.REMOTE_MIN_BYTES", SAMPLE)
    for name, data in shelf.items():
        hub.add(f"lab/{name}", {"model.safetensors": data})
    return hub


@pytest.fixture(scope="module")
def shelf() -> dict[str, bytes]:
    """Files of 1 MB: a base, its child, a hybrid of base and a stranger, strangers."""
    base, other = bare(1), bare(2)
    hybrid = {name: (base if int(name.split(".")[1]) % 4 == 0 else other)[name] for name in base if "layers" in name}
    models = {
        "base": base, "child": tuned(base, 3), "other": other, "other-2": bare(4),
        "hybrid": hybrid | {"embed.weight": other["embed.weight"]},
    }  # fmt: skip
    return {name: save(tensors) for name, tensors in models.items()}


CANDIDATES = ["lab/base", "lab/other", "lab/other-2"]


class TestTrace:
    def test_unrelated_candidates_are_left_after_a_few_units(self, wide: MiniHub) -> None:
        found = hl.trace("lab/child", CANDIDATES)
        fixed = hl.trace("lab/child", CANDIDATES, sample="auto")
        assert found.verdict == fixed.verdict and found.parent == fixed.parent
        left = {c.ref: c for c in found.candidates if c.p_method == "e_value"}
        assert set(left) == {"lab/other", "lab/other-2"}
        for c in left.values():
            assert (c.relation, c.p_value, c.probability, c.distance) == ("none", 1.0, 0.0, None)
            assert c.evidence["units"]["units"] == RUN * LOOKS[1] and c.evidence["units"]["share_high"] < 0.25
        assert found.bytes_read < 0.7 * fixed.bytes_read
        assert any(note.code == "left_early" for note in found.notes)
        assert sum(c.probability or 0 for c in found.candidates) + (found.none_probability or 0) == pytest.approx(1)

    def test_what_is_said_of_a_relative_is_what_a_sample_says(self, wide: MiniHub) -> None:
        """Bit for bit, but for what knows of the other candidates."""
        found = hl.trace("lab/child", CANDIDATES).candidates[0]
        fixed = hl.trace("lab/child", CANDIDATES[:1], sample="auto").candidates[0]
        assert found.ref == fixed.ref == "lab/base"
        mine, its = found.to_dict(), fixed.to_dict()
        for name in ("p_raw", "p_method", "distance", "relation", "order", "facts", "reasons"):
            assert mine[name] == its[name], name
        assert mine["evidence"]["units"]["alike"] == 16 and "units" not in its["evidence"]

    def test_all_of_them_unrelated(self, wide: MiniHub) -> None:
        found = hl.trace("lab/child", ["lab/other", "lab/other-2"])
        assert found.verdict == "none" and found.none_probability == pytest.approx(1 - found.alpha)
        assert sum(wide.bytes_served.values()) == found.bytes_read < 130_000
        assert hl.Lineage.from_json(found.to_json()) == found
        assert "unrelated" in found.to_text() and found.to_markdown() and found.explain()

    def test_a_quarter_in_common_is_found(self, wide: MiniHub) -> None:
        found = {c.ref: c for c in hl.trace("lab/hybrid", ["lab/base", "lab/other"]).candidates}
        assert found["lab/base"].p_value < 1e-6 and found["lab/other"].p_value < 1e-6

    def test_what_the_child_names_is_compared_whatever_its_units_say(self, wide: MiniHub, shelf) -> None:
        card = "---\nbase_model: lab/other\n---\n"
        wide.add("lab/liar", {"model.safetensors": shelf["child"], "README.md": card})
        found = hl.trace("lab/liar", ["lab/other"])
        assert found.claims[0].status == "contradicted"
        assert found.candidates[0].p_method != "e_value" and found.candidates[0].distance is not None

    def test_which_units_are_read_depends_on_both_commits(self, wide: MiniHub) -> None:
        def read() -> list[Run]:
            with hl.Session() as session:
                opened = [session.view(session.opener.open(name)) for name in ("lab/child", "lab/base")]
                asked = [f"0:{opened[0].ref.revision}:{opened[1].ref.revision}"]
                return draw_runs(opened[0], opened[0].architecture, {*opened[0]}, asked[0])

        first = read()
        assert read() == first
        for name in ("lab/base", "lab/child"):
            wide.commit(name, {"other.txt": f"{name}"})
            again = read()
            assert len({*again} & {*first}) < len(first) / 2
            first = again

    def test_a_sample_that_is_named_is_what_is_read(self, wide: MiniHub) -> None:
        for sample in ("auto", "300kB"):
            found = hl.trace("lab/child", ["lab/other"], sample=sample)
            assert found.candidates[0].p_method == "monte_carlo" and "units" not in found.candidates[0].evidence

    def test_a_bound_is_refused_before_anything_is_read(self, wide: MiniHub) -> None:
        with pytest.raises(ArgumentError, match="max_bytes"):
            hl.trace("lab/child", CANDIDATES, max_bytes=600_000)

    def test_where_a_sample_cannot_be_tested_one_over_e_is_the_p_value(
        self, wide: MiniHub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("hf_lineage.weights.evidence.candidate_test", lambda *_, **__: None)
        monkeypatch.setattr("hf_lineage.tasks.compare.mantel_applies", lambda *_: False)
        best = hl.trace("lab/child", CANDIDATES).candidates[0]
        assert (best.ref, best.p_method) == ("lab/base", "e_value")
        assert best.log10_p == pytest.approx(-best.evidence["units"]["log10_e"] + np.log10(3), abs=1e-6)

    def test_who_fails_while_units_are_read_is_listed(self, wide: MiniHub, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(child, pair, *_):
            raise hl.LineageError("no")

        monkeypatch.setattr(screen, "look", fail)
        assert hl.trace("lab/child", CANDIDATES).parent == hl.trace("lab/child", CANDIDATES, sample="auto").parent
