"""`federation.num_buckets` end to end: the same under masks and openly; books and report; a lying client that is outvoted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedpref.cohort import cohort_of
from fedpref.config import Recipe
from fedpref.errors import RecipeError
from fedpref.plan import make_plan
from privacy.distributed import DistributedMechanism
from privacy.errors import ParameterError
from privacy.ledger import read_ledger
from privacy.report import build_report, render_text, verify
from privacy.secagg.shares import NoisedShare
from tests.fedpref.conftest import speak
from tests.tiny import make_recipe, train, write_recipe

SIX: dict[str, Any] = {
    "privacy__trust": "distributed",
    "federation__partition__num_clients": 6,
    "federation__num_buckets": 3,
    "federation__num_rounds": 2,
}


def recipe(folder: Path, name: str, **changes: Any) -> Recipe:
    (folder / name).mkdir()
    return make_recipe(folder / name, **{**SIX, **changes})


def test_masked_and_open_buckets_give_the_same_head_bit_for_bit(tmp_path: Path) -> None:
    heads = {}
    for mode in ("full", "simulated"):
        r = recipe(tmp_path, mode, privacy__rng="seeded", privacy__secure_aggregation=mode)
        heads[mode] = train(r)
        assert len(read_ledger(Path(r.output_dir) / "ledger.jsonl").committed) == 2
        assert verify(Path(r.output_dir)).ok
    assert heads["full"].tobytes() == heads["simulated"].tobytes()
    assert np.abs(heads["full"]).max() > 0


def test_plan_books_and_report_name_the_buckets_and_their_price(tmp_path: Path) -> None:
    r, whole = recipe(tmp_path, "cut"), recipe(tmp_path, "whole", federation__num_buckets=1)
    plan, single = make_plan(r), make_plan(whole)
    assert plan.secure_costs is not None
    figures = plan.to_json()["secure_aggregation"]["buckets"]
    assert (figures["count"], figures["liars_outvoted"], figures["fewest_buckets"]) == (3, 1, 3)
    # At the same epsilon: two clients a bucket, one of them honest, against five of six; and the median's 1.16.
    expected = (cohort_of(whole).honest_shares / 1) ** 0.5 * 3**0.5 * 0.4487**0.5
    assert figures["noise_factor"] == pytest.approx(expected, rel=0.01)
    assert "buckets" not in single.to_json()["secure_aggregation"]
    assert [row.epsilon_total for row in plan.rows] == pytest.approx(
        [row.epsilon_total for row in single.rows], rel=1e-3
    )
    train(r)
    view = read_ledger(Path(r.output_dir) / "ledger.jsonl")
    facts = view.header.facts
    assert (facts["num_buckets"], facts["clients_per_bucket"], facts["liars_outvoted"]) == (3, 2, 1)
    text = " ".join(render_text(build_report(Path(r.output_dir))).split())
    assert "3 disjoint sums with noise in full" in text
    assert "moves nothing beyond what honest buckets" in text
    (tmp_path / "spoken").mkdir()
    spoken = " ".join(speak("plan", str(write_recipe(tmp_path / "spoken", Path("not-loaded"), **SIX))).out.split())
    assert "3 buckets, a sum of 2 to 2 clients each" in spoken
    assert f"{figures['noise_factor']:.2f} times the noise of one sum" in spoken


def test_one_lying_client_decides_a_plain_run_and_is_outvoted_by_buckets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The liar sends minus ten times what its rows say, well formed, under its mask, in every round."""
    share = DistributedMechanism.share

    def lie(self: Any, rows: Any, bound: float, reservation: Any, client: int, *rest: Any, **more: Any) -> NoisedShare:
        made = share(self, rows, bound, reservation, client, *rest, **more)
        if client:
            return made
        signed = made.value.astype(np.int32).view(np.int32)
        return NoisedShare((-40 * signed).view(np.uint32).astype(made.value.dtype), made.round, made.plan)

    quiet = {
        "privacy__noise_multiplier": 0.02,
        "privacy__rng": "seeded",
        "privacy__sample_rate": 1.0,
        "privacy__secure_aggregation": "simulated",
        "federation__num_rounds": 6,
    }
    towards = {}
    for name, count in (("plain", 1), ("cut", 3)):
        honest = train(recipe(tmp_path, f"{name} honest", federation__num_buckets=count, **quiet))
        with monkeypatch.context() as patch:
            patch.setattr(DistributedMechanism, "share", lie)
            spoilt = train(recipe(tmp_path, f"{name} spoilt", federation__num_buckets=count, **quiet))
        towards[name] = float(spoilt @ honest / np.linalg.norm(spoilt) / np.linalg.norm(honest))
    assert towards["plain"] < 0  # the model learns the opposite
    assert towards["cut"] > 0.8


def test_whole_users_as_clients_go_through_buckets_too(tmp_path: Path) -> None:
    r = recipe(
        tmp_path,
        "people",
        privacy__sampling="capped",
        privacy__max_participations=2,
        privacy__secure_aggregation="simulated",
        privacy__sample_rate=0.25,
        federation__partition={"by": "natural"},
        federation__num_units=40,
    )
    train(r)
    view = read_ledger(Path(r.output_dir) / "ledger.jsonl")
    assert len(view.committed) == 2
    assert view.header.facts["clients_per_bucket"] == 4


def test_buckets_belong_to_secure_sums_and_leave_enough_in_each(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="num_buckets"):
        recipe(tmp_path, "central", privacy__trust="central")
    with pytest.raises(ParameterError):
        make_plan(recipe(tmp_path, "alone", federation__num_buckets=6))
