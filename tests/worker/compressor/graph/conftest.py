from __future__ import annotations


def pytest_addoption(parser):
    parser.addoption("--random-graphs", type=int, default=50, help="how many random networks are tried")


def pytest_generate_tests(metafunc):
    if "random_graph" in metafunc.fixturenames:
        metafunc.parametrize("random_graph", range(metafunc.config.getoption("--random-graphs", default=50)))
