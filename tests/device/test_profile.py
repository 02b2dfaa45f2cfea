"""Device profiles: the built-in ones are complete, a broken one is refused with a reason."""

import dataclasses
from pathlib import Path

import pytest

from precision_search.device.profile import available_profiles, load_profile
from precision_search.errors import ConfigError

FILE = """
[datasheet]
device = "Bench"
source = "measured"
fp32_tflops = 10.0
fp16_tflops = 40
memory_bandwidth = 500.0
memory_gb = 8.0

[assumptions]
reason = "measured"
launch_us = 3.0
gemm_efficiency = 0.5
tensor_core_efficiency = 0.25
bandwidth_efficiency = 0.8
"""


def write(directory: Path, text: str) -> str:
    path = directory / "bench.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_the_five_devices_are_built_in() -> None:
    assert set(available_profiles()) == {"t4", "a10g", "l4", "a100", "h100"}


@pytest.mark.parametrize("name", available_profiles())
def test_a_built_in_profile_names_its_source_and_its_reason(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert profile.datasheet.source.startswith("https://")
    assert len(profile.assumptions.reason) > 40
    assert profile.flops_per_second("float16") > profile.flops_per_second("float32")


@pytest.mark.parametrize(("name", "tflops"), [("t4", 8.1), ("a100", 19.5)])
def test_fp32_is_the_rate_outside_tensor_cores(name: str, tflops: float) -> None:
    profile = load_profile(name)
    assert profile.flops_per_second("float32") == pytest.approx(tflops * 1e12 * profile.assumptions.gemm_efficiency)


def test_rates_are_peaks_times_efficiencies(tmp_path: Path) -> None:
    profile = load_profile(write(tmp_path, FILE))
    assert profile.name == "bench"
    assert profile.flops_per_second("float32") == pytest.approx(5e12)
    assert profile.flops_per_second("float16") == pytest.approx(10e12)
    assert profile.bytes_per_second == pytest.approx(400e9)
    assert profile.launch_seconds == pytest.approx(3e-6)


def test_only_the_t4_has_no_bfloat16() -> None:
    without = []
    for name in available_profiles():
        try:
            load_profile(name).flops_per_second("bfloat16")
        except ConfigError as error:
            without.append(name)
            assert "bfloat16" in error.what
            assert error.why
            assert "float16" in error.fix
    assert without == ["t4"]


def test_a_name_is_found_in_any_case() -> None:
    assert load_profile("T4") == load_profile("t4")


def test_an_unknown_name_lists_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        load_profile("a10")
    assert "t4" in caught.value.why
    assert "a100" in caught.value.why
    assert "`a10g`" in caught.value.fix or "`a100`" in caught.value.fix


def test_a_name_like_no_other_still_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match="unknown device profile `zzz`") as caught:
        load_profile("zzz")
    assert ".toml" in caught.value.fix


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (FILE.replace("launch_us = 3.0", ""), "assumptions.launch_us"),
        (FILE.replace("launch_us = 3.0", "launch_us = -1"), "assumptions.launch_us"),
        (FILE.replace("launch_us", "lunch_us"), "lunch_us"),
        (FILE.replace("gemm_efficiency = 0.5", "gemm_efficiency = 1.5"), "assumptions.gemm_efficiency"),
        (FILE.replace("memory_gb = 8.0", "memory_gb = 0"), "datasheet.memory_gb"),
        (FILE.replace('source = "measured"', ""), "datasheet.source"),
        (FILE.replace("[assumptions]", "[assumptions"), "not valid TOML"),
    ],
)
def test_a_broken_file_is_refused_by_the_name_of_what_is_wrong(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_profile(write(tmp_path, text))
    assert named in str(caught.value)
    assert caught.value.fix


@pytest.mark.parametrize("name", ["missing.toml", "some/where/else"])
def test_a_missing_file_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_profile(name)


def test_a_profile_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_profile("t4").name = "t5"  # type: ignore[misc]
