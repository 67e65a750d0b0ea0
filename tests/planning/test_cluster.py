"""Runs on many GPUs on paper: the arithmetic by hand, and `plan` with its options for them."""

from __future__ import annotations

import pytest

from running import call, make_teacher
from unixkd.cli.options import number_of_images
from unixkd.errors import UsageError, UserError
from unixkd.method.ledger import CONVENTIONS, Ledger
from unixkd.method.method import Method, Ramp
from unixkd.method.unix import kd, mixup, random, random_epoch, student_alone, unix
from unixkd.models import create_model
from unixkd.planning.cluster import ClusterPlan, asked_share, estimate

LEDGER = Ledger(student_flops=10, teacher_flops=30)
PAIR = ("plan", "--teacher", "resnet14", "--student", "resnet8")


def plan(processes: int = 1, **changed) -> ClusterPlan:
    """64 images a step, 6,400 in all, 10 epochs; 1 MB of gradients at 1 MB/s."""
    values = {
        "images": 6400,
        "batch_size": 64,
        "epochs": 10,
        "processes": processes,
        "gradients": 1_000_000,
        "bandwidth": 1e6,
    }
    return ClusterPlan(**{**values, **changed})


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_a_ring_passes_so_many_bytes_in_so_many_turns(processes):
    """P − 1 turns that sum up and P − 1 that hand out, each of the P-th part of the bytes."""
    sent = sum(1_000_000 / processes for _ in range(2 * (processes - 1)))
    assert plan(processes, batch_size=48).sending == pytest.approx(sent / 1e6)


@pytest.mark.parametrize("processes", [1, 4])
@pytest.mark.parametrize("method", [kd(), unix(), random(), mixup(), student_alone()], ids=lambda m: m.name)
def test_images_and_flops_are_those_a_ledger_is_charged(method, processes):
    """100 steps of 10 epochs in each process."""
    run, charged = estimate(method, plan(processes), LEDGER), LEDGER.emptied()
    for _ in range(1000 * processes):
        charged.charge(method.counts(64 // processes, 64 // processes))
    assert run.images == {
        "scored": charged.images.scored,
        "teacher_forwarded": charged.images.teacher_forwarded,
        "trained": charged.images.trained,
    }
    assert run.flops == pytest.approx({n: charged.training_flops(b) for n, b in CONVENTIONS.items()})
    assert (run.steps, run.step, run.hours) == (1000, None, None)


def test_a_run_is_its_steps():
    """Of 4 processes: 36 ms and 2 · 3/4 s of sending, a thousand times."""
    run = estimate(kd(), plan(4), LEDGER, compute=0.036)
    assert run.step == pytest.approx(1.536)
    assert run.hours == pytest.approx(1536 / 3600)
    half = estimate(random_epoch(0.5), plan(4), LEDGER, compute=0.036)
    assert half.hours == pytest.approx(768 / 3600)
    assert (half.images["trained"], half.steps) == (32_000, 500)


def test_a_method_that_changes_is_averaged_over_its_epochs():
    """From all 64 rows to half of them in 10 epochs: at 64, 61, 58, ... rows of the first of each."""
    method = Method("own", keep=1.0, ramp=Ramp(keep=0.5))
    run = estimate(method, plan(), LEDGER)
    rows = [method.at(epoch / 10).counts(64, 64).trained for epoch in range(10)]
    assert len(set(rows)) == 10
    assert run.images["trained"] == pytest.approx(100 * sum(rows))
    assert run.flops["backward_2x"] == pytest.approx(100 * sum(rows) * (30 + 3 * 10))


def test_stored_answers_leave_their_share_of_the_teacher():
    """3 views of 10 epochs, in one of two runs: 3/20 of the teacher's forwards."""
    planned = plan(runs=2)
    share = asked_share(planned, views=3)
    assert share == pytest.approx(0.15)
    stored = estimate(kd(), planned, LEDGER, asked=share)
    assert stored.images["teacher_forwarded"] == pytest.approx(0.15 * 64_000)
    assert stored.flops["backward_2x"] == pytest.approx(64_000 * (0.15 * 30 + 3 * 10))
    assert asked_share(planned, views=50) == pytest.approx(0.5)  # more than there are epochs: only runs share


def test_seconds_from_a_rate_by_hand():
    """UNIX in two processes: each scores 32 images and keeps 24; 10·32 + 24·(30 + 3·10) FLOPs at 1,000 a second."""
    run = estimate(unix(), plan(2, gradients=0), LEDGER, rate=1000)
    assert run.step == pytest.approx((10 * 32 + 24 * 60) / 1000)


@pytest.mark.parametrize(("batch_size", "processes"), [(64, 3), (64, 64), (6, 4)])
def test_a_batch_that_cannot_be_shared_out(batch_size, processes):
    with pytest.raises(UserError, match=f"a multiple of {processes}"):
        plan(processes, batch_size=batch_size)


def test_too_few_rows_to_keep():
    with pytest.raises(UserError, match="fewer than 2"):
        estimate(random(0.1), plan(8), LEDGER)


# The command


def printed(capsys, *words: str) -> tuple[str, dict[str, list[str]]]:
    """What `plan` prints, and the cells of its rows by their first word."""
    assert call(*PAIR, *words) == 0
    text = capsys.readouterr().out
    rows = [line.split() for line in text.splitlines() if line.startswith(" ") and line.strip()]
    return text, {first: rest for first, *rest in rows}


def student_facts() -> tuple[int, int, int]:
    """Forward FLOPs of both networks at 32 pixels with 1000 classes; bytes of the student's weights."""
    teacher, student = (create_model(name, 1000, 3) for name in ("resnet14", "resnet8"))
    ledger = Ledger.of(student, teacher, (3, 32, 32))
    return ledger.teacher_flops, ledger.student_flops, 4 * sum(p.numel() for p in student.parameters())


def test_a_billion_images_on_paper(capsys):
    words = [
        "--images",
        "1e9",
        "--data.size",
        "32",
        "--epochs",
        "2",
        "--batch_size",
        "4096",
        "--method",
        "unix",
    ]
    words += ["--gpus", "8", "--nodes", "4"]
    text, rows = printed(capsys, *words, "--tflops", "10", "--bandwidth", "5")
    teacher, student, size = student_facts()
    assert "2 epochs of 1,000,000,000 images of 32 pixels in 1,000 classes" in text
    assert "4 × 8 = 32 processes, batches of 4,096, 128 images each" in text
    # scored, asked, trained; both conventions
    assert rows["unix"][:3] == ["2.00G", "1.50G", "1.50G"]
    flops = [2e9 * student + 1.5e9 * (teacher + (1 + backward) * student) for backward in (1, 2)]
    assert [float(cell.rstrip("P")) for cell in rows["unix"][3:5]] == pytest.approx(
        [value / 1e15 for value in flops], rel=6e-3
    )
    compute = (128 * student + 96 * (teacher + 3 * student)) / 1e10  # in ms at 10 TFLOPs a second
    sending = 1000 * 2 * 31 / 32 * size / 5e9
    hours = 2e9 / 4096 * (compute + sending) / 3.6e6
    assert [float(cell) for cell in rows["unix"][5:8]] == pytest.approx(
        [compute + sending, hours, 32 * hours], rel=1e-2
    )
    assert f"sent in {sending:.3g} ms" in text
    assert rows["1"][:2] == ["2.00", "TB"]  # 2,004 bytes each
    assert "Given: 10 TFLOPs per second of a GPU" in text
    assert "Given: 5 GB/s between processes" in text
    assert "GPUs are not measured" not in text


def test_a_plan_on_paper_on_a_cpu_says_that_no_gpu_was_measured(capsys):
    words = ("--data", "digits", "--gpus", "2", "--batch_size", "16", "--rounds", "1")
    text, rows = printed(capsys, *words)
    assert "240 epochs of 1,438 images of 8 pixels in 10 classes" in text
    assert {"kd", "unix", "random", "student-alone", "infobatch"} <= rows.keys()
    assert all(float(cell.replace(",", "")) > 0 for cell in rows["unix"][5:8])
    assert "Measured here" in text
    assert "GPUs are not measured on this machine" in text
    assert "Assumed: 20 GB/s between processes" in text
    assert "CPU" in text
    assert "GPU \n" not in text


def test_images_of_a_teachers_own_data(tmp_path, capsys):
    """A run folder knows the size and the classes of its images; --images says how many."""
    teacher = make_teacher(tmp_path / "run")
    assert call("plan", "--teacher", teacher, "--student", "resnet8", "--images", "1e9", "--rounds", "0") == 0
    text = capsys.readouterr().out
    assert "1,000,000,000 images of 8 pixels in 10 classes" in text


def test_imagenet_without_timing(capsys):
    words = [
        "--images",
        "imagenet",
        "--data.size",
        "32",
        "--epochs",
        "100",
        "--data.views",
        "4",
        "--rounds",
        "0",
    ]
    text, rows = printed(capsys, *words)
    assert "100 epochs of 1,281,167 images of 32 pixels in 1,000 classes" in text
    assert "1 process, batches of 64, 64 images each" in text
    assert rows["kd"][:3] == ["0", "128M", "128M"]
    assert rows["kd"][5:] == ["–"] * 3
    assert rows["4"][:2] == ["10.27", "GB"]  # 1,281,167 · 4 · (1000 · 2 + 4) bytes
    assert "Nothing was timed (--rounds 0)" in text
    assert "GB/s" not in text  # one process sends nothing


def test_more_rows_than_are_timed_take_as_much_longer(monkeypatch, capsys):
    """On a CPU 32 of 40 images are timed, and taken to be linear."""
    sizes = []

    def timed(pair, steps, rounds):
        sizes.append(len(pair.batch))
        return {step: [3.2] for step in steps}

    monkeypatch.setattr("unixkd.cli.plan_cluster.time_steps", timed)
    words = ("--data", "digits", "--gpus", "1", "--batch_size", "40", "--epochs", "1")
    _, rows = printed(capsys, *words)
    assert sizes == [32]
    assert float(rows["kd"][5].replace(",", "")) == pytest.approx(4000)


def test_a_step_that_sends_for_longer_than_it_computes_is_a_warning(capsys):
    text, _ = printed(capsys, "--data", "digits", "--gpus", "2", "--tflops", "1", "--bandwidth", "0.001")
    assert "WARNING: a step sends for longer than it computes" in text


@pytest.mark.parametrize("text", ["many", "0", "-3", "1.5", "nan", "inf", ""])
def test_what_is_no_number_of_images(text):
    with pytest.raises(UsageError, match="--images is a number"):
        number_of_images(text)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--images", "many"), "--images is a number"),
        (("--gpus", "0"), "gpus"),
        (("--tflops", "-1"), "tflops"),
        (("--gpus", "2", "--match-kd"), "leave --gpus or the target out"),
        (("--data", "digits", "--images", "1e6", "--classes", "5"), "--classes is for images without data"),
        (("--gpu", "2"), "did you mean --gpus?"),
    ],
)
def test_what_a_plan_on_paper_does_not_allow(words, message, capsys):
    assert call(*PAIR, *words) == 2
    assert message in capsys.readouterr().err


def test_a_batch_that_cannot_be_shared_out_is_an_error(capsys):
    assert call(*PAIR, "--gpus", "3") == 1
    assert "--batch_size that is a multiple of 3" in capsys.readouterr().err
