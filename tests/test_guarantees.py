"""The rules with numbers behind them (1-19), each with tests that fail if it is broken; and the two that had none."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent, pld

from privacy.accounting import epsilon
from privacy.entries import LedgerHeader
from privacy.errors import LedgerError
from privacy.events import GaussianEvent
from privacy.report import build_report
from tests.privacy.books import DELTA, header, write_run

HERE = Path(__file__).parent

RULES: dict[int, tuple[str, ...]] = {
    1: (
        "privacy/test_gradients.py::test_a_pair_contributes_at_most_c_where_clipping_its_rows_would_give_more",
        "privacy/test_gradients_groups.py::test_a_pair_contributes_at_most_c_where_its_clipped_rows_would_give_more",
    ),
    2: (
        "privacy/test_gradients.py::test_a_user_contributes_at_most_c_however_many_pairs_it_has",
        "privacy/test_gradients_adapters.py::test_micro_batches_add_up_before_any_norm",
        "fedpref/test_work.py::test_which_records_stay_depends_on_the_users_own_texts_alone",
        "test_guarantees.py::test_one_person_one_client_is_an_assumption_that_the_report_lists",
    ),
    3: (
        "privacy/test_sampling.py::test_fixed_batches_and_coins_of_whole_clients_are_told_apart_from_poisson_sampling",
        "privacy/test_rng.py::test_any_two_units_coins_have_covariance_zero",
        "fedpref/test_rounds.py::test_central_books_amplified_for_readers_trusted_for_the_server_and_unamplified_at_the_node",
    ),
    4: ("fedpref/test_server.py::test_the_divisor_is_the_declared_constant_whoever_is_there",),
    5: (
        "privacy/test_clipping.py::test_fp32_rows_are_squared_in_fp64",
        "privacy/test_mechanism.py::test_a_sum_off_the_grid_is_not_released",
        "privacy/test_mechanism.py::test_every_released_number_is_on_the_grid",
        "fedpref/test_node.py::test_a_person_with_broken_features_contributes_zero_and_the_others_do_not_notice",
    ),
    6: ("fedpref/test_rounds.py::test_an_empty_sample_gives_pure_noise_and_the_run_goes_on",),
    7: (
        "privacy/test_rng.py::test_the_system_source_never_repeats_a_stream_under_equal_labels",
        "fedpref/test_mechanisms.py::test_no_noise_is_used_twice_across_rounds_clients_and_a_restart",
        "privacy/test_report.py::test_a_run_with_seeded_random_numbers_is_not_private_in_the_first_words",
    ),
    8: (
        "fedpref/test_run_privacy.py::test_every_byte_of_every_message_of_a_run_is_a_known_field",
        "fedpref/test_run_privacy.py::test_every_tracked_figure_can_be_computed_from_what_is_public_or_released",
        "fedpref/test_run_privacy.py::test_the_realised_cohort_is_in_no_file_and_no_line",
    ),
    9: (
        "privacy/secagg/test_sizing.py::test_a_share_is_sized_for_the_honest_ones_and_never_for_those_invited",
        "privacy/secagg/test_rounds.py::test_one_client_too_few_at_any_stage_aborts_and_nothing_is_released",
    ),
    10: ("test_guarantees.py::test_epsilon_is_of_the_zero_out_relation_and_of_no_other",),
    11: (
        "privacy/test_accounting.py::test_accountants_that_disagree_raise_a_dispute",
        "privacy/test_accounting.py::test_pld_is_no_looser_than_renyi",
    ),
    12: (
        "fedpref/test_mechanisms.py::test_labels_are_booked_apart_drawn_once_and_swapped",
        "fedpref/test_mechanisms.py::test_lost_labels_are_not_drawn_again",
        "fedpref/test_label_caps.py::test_a_projects_label_cap_holds_over_runs",
    ),
    13: (
        "privacy/test_gradients_groups.py::test_single_completions_as_units_are_refused_for_their_advantages_are_of_the_group",
        "privacy/test_gradients_refusals.py::test_losses_that_couple_records_are_refused",
    ),
    14: ("privacy/test_gradients_adapters.py::test_frozen_matrices_that_peft_thaws_get_no_gradient",),
    15: (
        "fedpref/test_node.py::test_asked_twice_a_node_sends_identical_bytes_and_books_once",
        "privacy/test_ledger.py::test_a_retry_of_identical_bytes_is_no_second_event",
    ),
    16: (
        "fedpref/test_run_privacy.py::test_the_nodes_folder_is_its_owners_alone",
        "fedpref/test_run_privacy.py::test_clean_removes_private_data_at_rest_and_keeps_books_and_release",
    ),
    17: (
        "fedpref/test_node.py::test_a_rounds_contribution_is_that_of_a_slow_loop_over_people",
        "fedpref/test_local_training.py::test_a_client_sends_its_whole_update_clipped_once",
        "fedpref/test_local_training.py::test_a_run_of_local_dp_sgd_books_every_step_in_every_clients_book",
        "fedpref/test_local_training.py::test_what_no_clipped_update_covers_is_no_recipe",
    ),
    18: (
        "fedpref/test_split_partition.py::test_who_is_held_out_depends_on_salt_and_name_alone",
        "privacy/test_report.py::test_assumptions_name_the_people_who_are_not_protected",
    ),
    19: ("fedpref/test_reading.py::test_public_data_without_reason_or_digest_are_refused",),
}


def test_every_rule_has_a_test_that_is_there() -> None:
    assert set(RULES) == set(range(1, 20))
    for rule, names in RULES.items():
        for name in names:
            file, function = name.split("::")
            tree = ast.parse((HERE / file).read_text(encoding="utf-8"))
            here = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
            assert function in here, f"rule {rule}: {name} is gone"


def test_one_person_one_client_is_an_assumption_that_the_report_lists(tmp_path: Path) -> None:
    """Rule 2: `user_id` is scoped to a client; that nobody is in two of them is not checked, and said."""
    (line,) = [a for a in build_report(write_run(tmp_path / "run")).fields["assumptions"] if "one client" in a]
    assert line.endswith("not checked.")


def test_epsilon_is_of_the_zero_out_relation_and_of_no_other() -> None:
    """Rule 10: the same event under replace-one costs about twice as much; the header can name zero-out alone."""
    event = PoissonSampledDpEvent(0.25, GaussianDpEvent(2.0))
    values = {}
    for relation in (NeighboringRelation.REPLACE_SPECIAL, NeighboringRelation.REPLACE_ONE):
        accountant = pld.PLDAccountant(relation)
        values[relation] = accountant.compose(event, 20).get_epsilon(DELTA)
    ours = epsilon({GaussianEvent(2.0, 0.25): 20}, DELTA)
    assert ours == pytest.approx(values[NeighboringRelation.REPLACE_SPECIAL], rel=1e-3)
    assert values[NeighboringRelation.REPLACE_ONE] > 1.5 * ours
    assert header().to_json()["relation"] == "zero_out"
    with pytest.raises(LedgerError):
        LedgerHeader.from_json({**header().to_json(), "relation": "replace_one"}, "x")
