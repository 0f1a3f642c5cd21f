from constitutional.judging.scores import mean, means, rates


def test_a_rate_and_its_change_leave_out_what_is_not_counted() -> None:
    shown = {"base": [True, False, None, True], "policy": [False, None, True, True]}
    base, policy = rates("cut_off", shown)
    assert (base.value, base.n, base.changes) == (2 / 3, 3, {})
    assert (policy.value, policy.n) == (2 / 3, 3)
    # Both were counted on the first and the last prompt: one was lost there, none gained.
    change = policy.changes["base"]
    assert (change.value, change.n) == (-0.5, 2)


def test_a_rate_of_nothing_has_no_observations_and_no_change() -> None:
    base, policy = rates("trait_rate/refusal", {"base": [None, None], "policy": [True, False]})
    assert (base.n, base.low, base.high) == (0, 0, 1)
    assert policy.changes == {}


def test_a_model_is_compared_with_those_before_it_only() -> None:
    shown = {"base": [True], "sft_model": [True], "policy": [False]}
    found = {each.model: list(each.changes) for each in rates("cut_off", shown)}
    assert found == {"base": [], "sft_model": ["base"], "policy": ["base", "sft_model"]}


def test_a_mean_and_its_change_are_over_prompts() -> None:
    base, policy = means("length", {"base": [3.0, 4.0], "policy": [1.0, 3.0]}, "words", seed=0)
    assert (base.value, base.low, base.high, base.n) == (3.5, 3, 4, 2)  # all the means that two can have
    change = policy.changes["base"]
    assert (change.value, change.low, change.high, change.n) == (-1.5, -2, -1, 2)  # 1 - 3 and 3 - 4


def test_of_one_cluster_nothing_can_be_said() -> None:
    assert mean("policy", "kl_from/base", [0.1, 0.2], [7, 7], "nats a token", seed=0).n == 0
