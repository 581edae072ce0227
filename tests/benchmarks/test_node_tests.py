"""What docs/node-tests.md says passes does pass: some cases of every operator here, all with `node_tests.py --check`."""

import itertools

import onnx
import pytest
import torch

from benchmarks import node_tests

PER_OPERATOR = 3


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def listed():
    """The first few cases of each operator that the page lists as passing."""
    passing = node_tests.passing_cases(node_tests.PAGE.read_text())
    chosen = []
    for _, group in itertools.groupby(sorted(passing, key=lambda case: case.operator), key=lambda case: case.operator):
        chosen += list(group)[:PER_OPERATOR]
    return chosen


class TestPage:
    def test_a_listed_case_passes(self):
        failing = [outcome for case in listed() if (outcome := node_tests.evaluate(case)).reason]
        assert not failing, "\n".join(f"{outcome.case}: {outcome.detail}" for outcome in failing)

    def test_the_page_counts_what_it_lists(self):
        text = node_tests.PAGE.read_text()
        if f"with onnx {onnx.__version__};" not in text:
            pytest.skip("the page was written with another version of onnx, which has other cases")
        assert f"\n{len(node_tests.passing_cases(text))} of {len(node_tests.cases())} cases pass" in text


class TestEvaluate:
    def test_a_wrong_expectation_is_found(self):
        case = next(case for case in node_tests.cases() if case.name == "test_relu")
        inputs, outputs = case.data[0]
        wrong = node_tests.Case("wrong", "Relu", case.model, ((inputs, (outputs[0] + 1,)),), case.rtol, case.atol)
        assert node_tests.evaluate(case).reason == ""
        assert node_tests.evaluate(wrong).reason == "wrong"

    def test_strings_are_refused_for_what_they_are(self):
        case = next(case for case in node_tests.cases() if case.operator == "StringConcat")
        assert node_tests.evaluate(case).reason == "strings"
