"""The device that a test runs on, and what the demo model should say there."""

from __future__ import annotations

import pytest

from precision_search.judging.sample_sets import SampleRows
from precision_search.model.bundle import Bundle
from precision_search.model.samples import encode, load_samples
from precision_search.model.tokenizer import load_tokenizer
from precision_search.runtime.session import Device, SessionSettings
from tests.conftest import DEMO_DATA, DEMO_MODEL, Rows
from tests.gpu.devices import DEVICES, settings_on
from tests.plans import sample_rows


@pytest.fixture(scope="session", params=DEVICES)
def device(request: pytest.FixtureRequest) -> Device:
    found: Device = request.param
    return found


@pytest.fixture(scope="session")
def settings(device: Device) -> SessionSettings:
    return settings_on(device)


@pytest.fixture(scope="session")
def test_ids() -> Rows:
    return encode(load_samples(DEMO_DATA / "test.txt", "test"), load_tokenizer(DEMO_MODEL), "", None).ids


@pytest.fixture(scope="session")
def calibration(demo_bundle: Bundle, demo_ids: Rows) -> SampleRows:
    """The calibration sentences with the CPU's reference."""
    return sample_rows(demo_bundle, demo_ids)
