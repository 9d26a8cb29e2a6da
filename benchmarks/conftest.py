"""`pytest benchmarks/ --benchmark-only`: options, the device's ceilings once, and a table of ratios at the end."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.timing import Ceilings, ceilings

_REPORT = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    group = parser.getgroup("motarfuse benchmarks")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    group.addoption("--device", default=default, help="cpu or cuda (default: %(default)s)")
    group.addoption("--threads", type=int, default=2, help="of the CPU (default: %(default)s)")
    if not pluginmanager.hasplugin("benchmark"):
        group.addoption("--benchmark-only", action="store_true", help="needs pytest-benchmark")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_REPORT] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.pluginmanager.hasplugin("benchmark"):
        return
    skip = pytest.mark.skip(reason="needs pytest-benchmark: pip install 'motarfuse[bench]'")
    for item in items:
        item.add_marker(skip)


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> torch.device:
    """Where the benchmarks run."""
    torch.set_num_threads(pytestconfig.getoption("--threads"))
    return torch.device(pytestconfig.getoption("--device"))


@pytest.fixture(scope="session")
def ceiling(device: torch.device) -> Ceilings:
    """Copy bandwidth and matrix rate of this run."""
    return ceilings(device)


@pytest.fixture(autouse=True)
def _ratios(request: pytest.FixtureRequest) -> Any:
    """Keeps what a benchmark found out for the table at the end."""
    yield
    benchmark = request.node.funcargs.get("benchmark")
    extra = getattr(benchmark, "extra_info", {})
    ratio, fraction = extra.get("ratio_to_best_peer"), extra.get("fraction_of_ceiling")
    if "implementation" in extra:
        columns = [f"{request.node.name:58} {extra['implementation']:24}"]
        columns.append("" if ratio is None else f"{ratio:6.2f} x the best peer")
        columns.append("" if fraction is None else f"{fraction:6.2f} of the ceiling")
        request.config.stash[_REPORT].append(" ".join(columns).rstrip())


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if config.stash[_REPORT]:
        terminalreporter.section("against the best peer and the ceiling, interleaved medians")
        for line in config.stash[_REPORT]:
            terminalreporter.line(line)
