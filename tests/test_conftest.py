"""What tests/conftest.py promises to the other tests."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

GOLDEN_TEST = "def test_text(golden): golden({text!r}, 'message.txt')"


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    """An empty project with our conftest."""
    pytester.makeconftest(Path(__file__).with_name("conftest.py").read_text(encoding="utf-8"))
    return pytester


def test_golden_text_is_written_on_request_and_compared_otherwise(project: pytest.Pytester) -> None:
    project.makepyfile(test_errors=GOLDEN_TEST.format(text="unknown name"))
    project.runpytest("-p", "no:cacheprovider").assert_outcomes(failed=1)
    project.runpytest("-p", "no:cacheprovider", "--update-golden").assert_outcomes(passed=1)
    assert (project.path / "goldens/errors/message.txt").read_text() == "unknown name\n"
    project.runpytest("-p", "no:cacheprovider").assert_outcomes(passed=1)
    project.makepyfile(test_errors=GOLDEN_TEST.format(text="known name"))
    result = project.runpytest("-p", "no:cacheprovider")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*-unknown name", "*+known name"])


def test_golden_tests_are_selected_by_their_mark(project: pytest.Pytester) -> None:
    project.makepyfile("def test_a(golden): pass\ndef test_b(): pass")
    project.runpytest("-m", "golden").assert_outcomes(passed=1, deselected=1)


def test_gpu_tests_are_skipped_where_the_driver_shows_no_device(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.makepyfile("import pytest\n@pytest.mark.gpu\ndef test_a(): pass\ndef test_b(): pass")
    monkeypatch.setattr("ctypes.CDLL", raise_os_error)
    result = project.runpytest("-rs")
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["*no CUDA GPU on this machine*"])


def test_a_run_that_must_have_a_gpu_fails_without_one(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.makepyfile("import pytest\n@pytest.mark.gpu\ndef test_a(): pass")
    monkeypatch.setattr("ctypes.CDLL", raise_os_error)
    monkeypatch.setenv("TILUS_REQUIRE_GPU", "1")
    assert project.runpytest("-m", "gpu").ret == 1


def test_a_gpu_run_does_not_import_files_without_gpu_tests(project: pytest.Pytester) -> None:
    project.makepyfile(
        test_other="import no_such_module", test_gpu="import pytest\n@pytest.mark.gpu\ndef test_a(): 1"
    )
    result = project.runpytest("-m", "gpu")
    assert sum(result.parseoutcomes().get(name, 0) for name in ("passed", "skipped")) == 1
    assert "errors" not in result.parseoutcomes()


def raise_os_error(name: str) -> None:
    raise OSError(name)
