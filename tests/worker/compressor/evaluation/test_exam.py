"""The divergence against torch's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from worker.compressor.distillation.objective import OutputKind, Scores
from worker.compressor.evaluation.exam import divergence

RNG = np.random.default_rng(0)


class TestDivergence:
    @pytest.mark.parametrize("shape", [(7, 5), (7, 3, 5)])
    def test_of_logits_it_is_that_of_their_softmax(self, shape):
        before, after = RNG.standard_normal((2, *shape)) * 3
        old, new = (F.log_softmax(torch.from_numpy(array), -1) for array in (before, after))
        want = F.kl_div(new, old, reduction="none", log_target=True).sum(-1).reshape(7, -1).mean(-1)
        np.testing.assert_allclose(divergence(OutputKind(Scores.LOGITS, 1.0), before, after), want, rtol=1e-9)

    def test_of_probabilities_it_is_their_own(self):
        before, after = RNG.dirichlet(np.ones(4), (2, 6))
        want = (before * np.log(before / after)).sum(-1)
        np.testing.assert_allclose(divergence(OutputKind(Scores.PROBABILITIES, 1.0), before, after), want, rtol=1e-9)

    def test_of_values_it_is_that_of_normal_distributions(self):
        before, after = RNG.standard_normal((2, 6, 3))
        p, q = (torch.distributions.Normal(torch.from_numpy(array), 2.0) for array in (before, after))
        want = torch.distributions.kl_divergence(p, q).mean(-1)
        np.testing.assert_allclose(divergence(OutputKind(Scores.VALUES, 2.0), before, after), want, rtol=1e-9)

    def test_nothing_changed_is_nothing(self):
        before = RNG.standard_normal((6, 3))
        for kind in (*(OutputKind(scores, 1.0) for scores in (Scores.LOGITS, Scores.VALUES)), None):
            assert divergence(kind, before, before).tolist() == [0.0] * 6
