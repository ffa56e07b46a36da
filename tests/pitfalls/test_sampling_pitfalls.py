"""Row "fixed or shuffled batches": users take part by coins of their own, in production code and in the learner."""

from __future__ import annotations

from stub_federation import Holds


def test_participation_of_a_user_varies_as_independent_coins_do(holds: Holds) -> None:
    """A shuffle that visits everybody equally often has variance 0, a user who is always in a mean of T."""
    holds("sampling.coins")


def test_participation_of_two_users_is_not_correlated(holds: Holds) -> None:
    """A batch of a fixed size has a negative covariance, and a cohort of variance 0."""
    holds("sampling.coins")


def test_the_rate_does_not_depend_on_how_many_users_there_are(holds: Holds) -> None:
    """One user more changes nobody's coin, so the rate is the plan's, not one made from the data's size."""
    holds("sampling.rate")


def test_the_learner_samples_anew_in_every_step(holds: Holds) -> None:
    """Over 200 rounds of a real learner no user is always in, never in, or in with a period."""
    holds("sampling.learner")
