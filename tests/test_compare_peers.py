"""benchmarks/compare_peers.py without any peer installed: what is missing becomes a row that says so."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mdrt
from mdrt import models

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import compare_peers  # noqa: E402
from peers import amx, cpuid, peaks  # noqa: E402
from peers.contenders import LIMITS, Contender  # noqa: E402
from peers.preparation import PreparationError, Workshop  # noqa: E402
from peers.processes import Worker, WorkerError  # noqa: E402
from peers.report import BEGIN, END, Group, Report, Row, ratio  # noqa: E402

STAGE = "text_encoder"
OURS = Contender("mdrt", "fp16", "16 bit", "", "fp16", "fp32")


@pytest.fixture
def workshop(tmp_path):
    """The built-in model with inputs, and what mdrt makes of them in place of PyTorch."""
    bundle = models.builtin_path()
    session = mdrt.Session(bundle, STAGE)
    ids = np.arange(24, dtype=np.int64)[np.newaxis]
    folder = tmp_path / "models" / STAGE / "onnx-fp32"
    folder.mkdir(parents=True)
    np.savez(folder / "reference.npz", input_ids=ids, expected=session.run(input_ids=ids)["last_hidden_state"])
    return Workshop(tmp_path, bundles={"fp16": Path(bundle)})


def fake_environment(workshop, name, script):
    python = workshop.folder / "environments" / name / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    (workshop.folder / "environments" / name / "ready").touch()


def test_a_peer_that_cannot_run_is_a_row_with_a_reason(workshop):
    (workshop.folder / "models" / STAGE / "mnn-fp32").mkdir()
    fake_environment(workshop, "mnn", "echo 'ImportError: there is no MNN' >&2; exit 1")
    missing = Contender("MNN", "fp32", "16 bit", "mnn", "mnn-fp32", "fp32")
    (ours, theirs), _ = compare_peers.measure([OURS, missing], STAGE, 1, workshop, rounds=2, seconds=0)
    assert len(ours.seconds) == 2 and min(ours.seconds) > 0 and ours.error == 0 and ours.peak_rss_bytes > 0
    assert ours.version == mdrt.__version__ and not ours.reason
    assert theirs.seconds == [] and theirs.reason == "ImportError: there is no MNN"


def test_a_peer_without_a_model_is_a_row_with_a_reason(workshop):
    fake_environment(workshop, "mnn", "echo 'cannot convert'; exit 3")
    missing = Contender("MNN", "fp32", "16 bit", "mnn", "mnn-fp32", "fp32")
    (row,), _ = compare_peers.measure([missing], STAGE, 1, workshop, rounds=1, seconds=0)
    assert row.reason == f"cannot convert (models/{STAGE}/mnn-fp32.failed)"


def test_a_failed_step_is_not_repeated_until_its_mark_is_removed(workshop):
    runs = workshop.folder / "runs"
    fake_environment(workshop, "mnn", f"echo run >>{runs}; exit 1")
    for _ in range(2):
        with pytest.raises(PreparationError):
            workshop.model("mnn-fp32", STAGE)
    assert runs.read_text() == "run\n"
    (workshop.folder / "models" / STAGE / "mnn-fp32.failed").unlink()
    (workshop.folder / "environments" / "mnn" / "bin" / "python").write_text("#!/bin/sh\nexit 0\n")
    assert workshop.model("mnn-fp32", STAGE).is_dir()


def test_a_worker_that_ends_is_an_error(workshop):
    worker = compare_peers.start(OURS, STAGE, 1, workshop, 0)
    worker.turn()
    worker._process.kill()
    with pytest.raises(WorkerError):
        worker.turn()
    worker.close()


@pytest.mark.parametrize("waits", [False, True])
def test_a_peer_that_ends_in_a_round_leaves_no_seconds(workshop, monkeypatch, waits):
    """Found dead when it is asked, and when it should answer."""
    turn, count = Worker.turn, iter(range(9))

    def ends_in_the_second(self):
        if next(count) == 1:
            self._process.kill()
            if waits:
                self._process.wait()
        return turn(self)

    monkeypatch.setattr(Worker, "turn", ends_in_the_second)
    (row,), _ = compare_peers.measure([OURS], STAGE, 1, workshop, rounds=3, seconds=0)
    assert row.seconds == [] and row.reason


def test_rounds_that_others_disturb_are_repeated(workshop, monkeypatch):
    answers = iter([(1.0, 0.0), (9.0, 0.8), (2.0, 0.1), (8.0, 0.3), (3.0, 0.0), (7.0, 0.0)])

    def turn(self):
        seconds, others = next(answers)
        return {"seconds": seconds, "others": others, "peak_rss_bytes": 1}

    monkeypatch.setattr(Worker, "turn", turn)
    (row,), others = compare_peers.measure([OURS], STAGE, 1, workshop, rounds=3, seconds=0)
    assert row.seconds == [1.0, 2.0, 3.0] and others == 0.1


def test_who_uses_amx_runs_with_it_and_without(monkeypatch):
    monkeypatch.setattr(compare_peers, "has_amx", lambda: True)
    rows = compare_peers.contenders("unet", "int8", "")
    assert [row.label for row in rows if row.runtime == "mdrt"] == ["int8", "int8, no AMX"]
    assert {row.amx for row in rows if row.limit} == {False}
    assert not any(row.limit for row in compare_peers.contenders("unet", "fp32", ""))
    monkeypatch.setattr(compare_peers, "has_amx", lambda: False)
    rows = compare_peers.contenders("unet", "int8", "")
    assert rows and not any(row.amx or row.limit for row in rows)


def test_a_limit_is_for_all():
    rows = compare_peers.contenders("vae_decoder", "int8", "AVX2")
    assert {row.runtime for row in rows} == {"mdrt", "OpenVINO", "ONNX Runtime"}
    assert all(row.older and row.label.endswith(", AVX2 only") and not row.amx for row in rows)


@pytest.mark.parametrize("limit", ["AVX2", "AVX-VNNI"])
def test_an_older_processor_is_shown(tmp_path, limit):
    if not cpuid.can_pretend():
        pytest.skip("this processor does not fault on CPUID")
    program = (
        f"from peers.cpuid import pretend\n"
        f"pretend({str(cpuid.library(tmp_path))!r}, {LIMITS[limit].avx_vnni})\n"
        "from mdrt import _core\n"
        "print(*(row['name'] for row in _core.build_info()['isas'] if row['usable']))"
    )
    command = [sys.executable, "-c", program]
    names = subprocess.run(command, cwd=BENCHMARKS, check=True, capture_output=True, text=True).stdout.split()
    assert "avx2" in names and not any(name.startswith(("avx512", "amx")) for name in names)
    assert "avxvnni" not in names or LIMITS[limit].avx_vnni


def group(kind="int8", ours=(1.0, 1.2, 1.1), theirs=(2.0, 2.0, 2.0)):
    rows = [
        Row("mdrt", "int8", "int8", amx=True, version="1", seconds=list(ours)),
        Row("mdrt", "int8, no AMX", "int8", amx=False, version="1", seconds=[3.0, 3.0, 3.0]),
        Row("OpenVINO", "int8", "int8", amx=True, version="2", seconds=list(theirs)),
        Row("OpenVINO", "int8, no AMX", "int8", amx=False, version="2", seconds=[4.0, 4.0, 4.0]),
        Row("ncnn", "int8", "int8", amx=False, reason="no | quantiser"),
    ]
    return Group("unet", kind, 2, "", "2026-01-01", {"int8 AMX": 400.0, "int8 AVX512-VNNI": 100.0}, 0.1, rows)


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "performance.md"
    path.write_text(f"Before.\n{BEGIN}\nold\n{END}\nAfter.\n")
    return path


def test_tables_are_written_between_the_markers(page):
    report = Report(page)
    report.gmac["unet"] = 100.0
    report.add(group())
    report.write()
    text = page.read_text()
    assert text.startswith(f"Before.\n{BEGIN}\n") and text.endswith(f"{END}\nAfter.\n") and "old" not in text
    summary = "| UNet | int8 | 2 | 1.100 | OpenVINO int8 | 2.000 | 0.55 (0.50-0.60) "
    assert summary + "| 3.000 | OpenVINO int8, no AMX | 4.000 | 0.75 (0.75-0.75) |" in text
    assert "| OpenVINO | int8 | 2.000 | 0.55 (0.50-0.60) | 50 | 12% of int8 AMX |" in text
    assert "| OpenVINO | int8, no AMX | 4.000 | 0.75 (0.75-0.75) | 25 | 25% of int8 AVX512-VNNI |" in text
    assert "| ncnn | int8 | not measured: no / quantiser |" in text


def test_a_report_is_continued_on_the_same_machine_only(page, monkeypatch):
    report = Report(page)
    report.gmac["unet"] = 100.0
    report.add(group("fp32"))
    report.write()
    report = Report(page)
    report.add(group())
    report.add(group(ours=(2.9, 2.9, 2.9)))
    text = report.markdown()
    assert (
        "| UNet | fp32 | 2 | 1.100 |" in text and "| UNet | int8 | 2 | 2.900 |" in text and "1.45 (1.45-1.45)" in text
    )
    monkeypatch.setattr("peers.report.machine", lambda: {"cpu": "another", "cores": 1, "memory_gb": 1, "kernel": "1"})
    report = Report(page)
    report.add(group())
    assert "fp32" not in report.markdown()


def test_a_page_without_markers_is_refused_before_anything_is_measured(page):
    page.write_text("Nothing.\n")
    with pytest.raises(ValueError, match="needs the lines"):
        Report(page)
    assert page.read_text() == "Nothing.\n"


def test_a_ratio_needs_both_sides():
    row = Row("mdrt", "int8", "int8", amx=False, seconds=[1.0])
    assert ratio(row, None) == ratio(None, row) == "not measured"


def test_the_fastest_unit_counts():
    measured = {"fp32 AVX2": 50.0, "fp32 AVX-512": 100.0, "bf16 AVX512-BF16": 60.0, "bf16 AMX": 900.0}
    assert peaks.best(measured, "bf16", amx=True) == ("bf16 AMX", 900.0)
    assert peaks.best(measured, "bf16", amx=False) == ("fp32 AVX-512", 100.0)
    assert peaks.best(measured, "int8", amx=True) is None


@pytest.mark.skipif(not amx.has_amx(), reason="this processor has no AMX")
def test_amx_can_be_refused():
    script = "import ctypes; from peers import amx; {} print(ctypes.CDLL(None).syscall(158, 0x1023, 18))"
    answers = [
        subprocess.run(
            [sys.executable, "-c", script.format(call)], cwd=BENCHMARKS, check=True, capture_output=True, text=True
        ).stdout.strip()
        for call in ("", "amx.forbid_amx();")
    ]
    assert answers == ["0", "-1"]


def test_a_new_page_is_made(tmp_path):
    report = Report(tmp_path / "new.md")
    report.gmac["unet"] = 100.0
    report.add(group())
    report.write()
    text = (tmp_path / "new.md").read_text()
    assert text.count(BEGIN) == text.count(END) == 1 and "| UNet |" in text
