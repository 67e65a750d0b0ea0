"""Runs on many GPUs on paper: communication, steps and runs by hand, and `plan` with its options for them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from plan_check import link_of
from running import call, make_teacher
from unixkd.cli.options import parse_images
from unixkd.cli.plan_cluster import writing
from unixkd.errors import UsageError, UserError
from unixkd.method.ledger import CONVENTIONS, Ledger
from unixkd.method.method import Method, Ramp, Scoring
from unixkd.method.unix import kd, mixup, random, random_epoch, student_alone, unix
from unixkd.models import ModelCard, PixelModel, create_model
from unixkd.planning import timing
from unixkd.planning.cluster import (
    Paper,
    PaperRun,
    Part,
    StepTime,
    asked_share,
    from_flops,
    mean,
    needed_parts,
    predict,
)
from unixkd.planning.links import (
    BETWEEN,
    MIB,
    WITHIN,
    Cluster,
    Link,
    Traffic,
    all_gather_seconds,
    all_reduce_bytes,
    all_reduce_seconds,
    broadcast_seconds,
    buckets,
    moved_rows,
)
from unixkd.planning.timing import part_calls, part_seconds

LEDGER = Ledger(student_flops=10, teacher_flops=30)
LINK = Link(bandwidth=1e6, latency=0.001)


def paper(gpus: int = 1, nodes: int = 1, **changed) -> Paper:
    """64 images a step, 6,400 in all, 10 epochs; 1 MB of gradients, 1 kB of buffers."""
    values = {
        "images": 6400,
        "batch_size": 64,
        "epochs": 10,
        "cluster": Cluster(gpus, nodes, LINK, LINK),
        "traffic": Traffic(gradients=1_000_000, buffers=1000, buffer_types=2, image=1000),
    }
    return Paper(**{**values, **changed})


def per_image(methods: list[Method], planned: Paper) -> dict[Part, float]:
    """1 ms to score an image, 2 for the teacher, 6 to train, 5 for the update."""
    each = {"scoring": 0.001, "teacher": 0.002, "training": 0.006}
    parts = needed_parts(methods, planned, (8, 8))
    return {part: 0.005 if part.kind == "optimizer" else part.rows * each[part.kind] for part in parts}


def step_of(method: Method, planned: Paper, **options) -> StepTime:
    step = predict(method, planned, LEDGER, per_image([method], planned), **options).step
    assert step is not None
    return step


# Communication


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_a_ring_passes_so_many_bytes_in_so_many_turns(processes):
    """A ring, turn by turn: each process adds the chunk it is passed to its own, then passes the sums on."""
    own = torch.rand(processes, processes)  # [process, chunk]
    held, sent, turns = own.clone(), 0, 0
    for adds in (True, False):
        for turn in range(processes - 1):
            passed = [(rank - turn + (not adds)) % processes for rank in range(processes)]
            values = [held[rank, chunk].clone() for rank, chunk in enumerate(passed)]
            for rank, (chunk, value) in enumerate(zip(passed, values, strict=True)):
                to = (rank + 1) % processes
                held[to, chunk] = held[to, chunk] + value if adds else value
            sent, turns = sent + 1, turns + 1
    assert torch.allclose(held, own.sum(0).expand_as(held))
    assert all_reduce_bytes(processes * 100, processes) == pytest.approx(sent * 100)
    assert all_reduce_seconds(0, processes, Link(1.0, 0.5)) == turns * 0.5


def test_seconds_of_messages_by_hand():
    link = Link(10e9, 20e-6)
    # 2 · 3/4 of 100 MB at 10 GB/s, and twice 6 turns of 20 µs
    assert all_reduce_seconds(100e6, 4, link, messages=2) == pytest.approx(0.015 + 0.00024)
    assert all_gather_seconds(100e6, 4, link) == pytest.approx(0.0075 + 0.00006)
    assert broadcast_seconds(100e6, 4, link, messages=3) == pytest.approx(0.01 + 0.00012)


def test_one_process_sends_nothing():
    traffic = Traffic(10**9, 10**6, 2, 10**6, "global")
    alone = Cluster()
    assert (traffic.gradient_seconds(alone), traffic.buffer_seconds(alone)) == (0.0, 0.0)
    assert traffic.exchange_seconds(alone, 64, 48) == 0.0
    assert step_of(unix(), paper()).sending == 0.0


def test_a_ring_is_as_fast_as_its_slowest_link():
    fast, slow = Link(100e9, 1e-6), Link(1e9, 50e-6)
    assert Cluster(8, 1, fast, slow).link == fast
    assert Cluster(1, 8, fast, slow).link == slow
    assert Cluster(8, 2, fast, slow).link == slow
    assert Cluster(8, 2, slow, fast).link == slow


def test_a_link_is_found_from_a_short_and_a_long_message():
    """As the benchmark does that checks the plan; the short one's bytes count for nothing beside its latency."""
    short, long = (all_reduce_seconds(size, 4, LINK) for size in (0, 10**6))
    found = link_of(short, long, 10**6, 4)
    assert (found.bandwidth, found.latency) == pytest.approx((LINK.bandwidth, LINK.latency))


@pytest.mark.parametrize("name", ["vgg8", "resnet8x4", "wrn_40_2"])
def test_gradients_go_as_one_message_for_each_of_ddps_buckets(name):
    """torch's own assignment fills buckets with whole tensors, so that it may need one more or less."""
    parameters = list(create_model(name).parameters())[::-1]
    ours = buckets(sum(p.numel() * p.element_size() for p in parameters))
    assigned, _ = torch.distributed._compute_bucket_assignment_by_size(parameters, [MIB, 25 * MIB])
    assert abs(len(assigned) - ours) <= 1


@pytest.mark.parametrize(("processes", "share"), [(2, 0.75), (8, 0.75), (8, 0.5)])
def test_rows_that_move_are_those_that_lie_too_many_in_one_place(processes, share):
    """Kept rows anywhere in the batch; what a process has beyond an even share moves."""
    batch, draws = 256, torch.Generator().manual_seed(0)
    kept, moved = round(share * batch), []
    for _ in range(2000):
        owner = torch.randperm(batch, generator=draws)[:kept] * processes // batch
        moved.append((owner.bincount(minlength=processes) - kept // processes).clamp(min=0).sum())
    assert moved_rows(batch, kept, processes) == pytest.approx(
        float(torch.stack(moved).float().mean()), rel=0.05
    )


def test_global_selection_exchanges_scores_and_rows():
    """3 turns of 16 scores of 4 bytes, and the rows that move, of 1000 bytes, through one link."""
    traffic, cluster = Traffic(4, image=1000, selection="global"), Cluster(4, 1, LINK)
    rows = moved_rows(64, 48, 4)
    assert traffic.exchange_seconds(cluster, 64, 48) == pytest.approx(3 * (64e-6 + 0.001) + rows * 1e-3)
    planned = paper(4, traffic=traffic)
    assert step_of(unix(), planned).exchange == step_of(random(), planned).exchange > 0
    assert step_of(kd(), planned).exchange == 0.0  # nothing is ranked
    assert step_of(unix(), replace(planned, traffic=replace(traffic, selection="local"))).exchange == 0.0


# Steps and runs


def test_a_step_by_hand():
    """4 processes with 16 images each: 16 scored, 12 kept; 1.5 MB at 1 MB/s, 6 turns; 1 kB, 2 · 2 turns."""
    step = step_of(unix(), paper(4))
    assert (step.scoring, step.teacher, step.training) == pytest.approx((0.016, 0.024, 0.072))
    assert step.compute == pytest.approx(0.016 + 0.024 + 0.072 + 0.005)
    assert step.gradients == pytest.approx(1.5 + 0.006)
    assert step.buffers == pytest.approx(0.001 + 0.004)
    assert step.slowest == pytest.approx(0.117 + 1.506 + 0.005)
    assert step.fastest == pytest.approx(0.117 + 1.506 + 0.005 - 0.048)  # the backward is 2/3 of 72 ms


def test_no_more_is_hidden_than_is_sent():
    step = StepTime(training=3.0, gradients=1.0, buffers=0.5)
    assert (step.slowest, step.fastest) == (4.5, 3.5)


def test_loaders_that_are_slower_than_the_step_set_its_time():
    """16 images of a process at 100 a second are 160 ms."""
    planned = paper(4, traffic=Traffic(4), loading=100.0)
    assert step_of(kd(), planned).slowest == step_of(kd(), planned).fastest == 0.16
    quick = step_of(kd(), replace(planned, loading=1000.0))
    assert quick.slowest == pytest.approx(quick.compute + quick.sending)


@pytest.mark.parametrize("gpus", [1, 4])
@pytest.mark.parametrize("method", [kd(), unix(), random(), mixup(), student_alone()], ids=lambda m: m.name)
def test_images_and_flops_are_those_a_ledger_is_charged(method, gpus):
    """100 steps of 10 epochs in each process."""
    planned = paper(gpus)
    run, charged = predict(method, planned, LEDGER, None), LEDGER.emptied()
    for _ in range(1000 * gpus):
        charged.charge(method.counts(64 // gpus, 64 // gpus))
    assert run.images == {
        "scored": charged.images.scored,
        "teacher_forwarded": charged.images.teacher_forwarded,
        "trained": charged.images.trained,
    }
    assert run.flops == pytest.approx({n: charged.training_flops(b) for n, b in CONVENTIONS.items()})
    assert (run.steps, run.step, run.seconds) == (1000, None, None)


def test_a_run_is_its_steps():
    planned = paper(2, 2)
    seconds = per_image([kd()], planned)
    run = predict(kd(), planned, LEDGER, seconds)
    assert run.step is not None
    assert run.seconds == (1000 * run.step.fastest, 1000 * run.step.slowest)
    half = predict(random_epoch(0.5), planned, LEDGER, seconds)
    assert half.seconds == pytest.approx([value / 2 for value in run.seconds])
    assert (half.images["trained"], half.steps) == (32_000, 500)


def test_a_method_that_changes_is_averaged_over_its_epochs():
    """From all 64 rows to half of them in 10 epochs: at 64, 61, 58, ... rows of the first of each."""
    method = Method("own", keep=1.0, ramp=Ramp(keep=0.5))
    planned = paper()
    run = predict(method, planned, LEDGER, per_image([method], planned))
    rows = [method.at(epoch / 10).counts(64, 64).trained for epoch in range(10)]
    assert len(set(rows)) == 10
    assert run.step is not None
    assert run.step.training == pytest.approx(0.006 * sum(rows) / 10)
    assert run.images["trained"] == pytest.approx(100 * sum(rows))
    assert run.flops["backward_2x"] == pytest.approx(100 * sum(rows) * (30 + 3 * 10))


def test_epochs_that_do_not_score_are_counted():
    method = replace(unix(), scoring=Scoring(every=2))
    assert step_of(method, paper()).scoring == pytest.approx(0.064 / 2)


def test_stored_answers_leave_their_share_of_the_teacher():
    """3 views of 10 epochs, in one of two runs: 3/20 of the teacher's forwards."""
    planned = paper(runs=2)
    share = asked_share(planned, views=3)
    assert share == pytest.approx(0.15)
    whole, stored = (predict(kd(), planned, LEDGER, per_image([kd()], planned), s) for s in (1.0, share))
    assert stored.images["teacher_forwarded"] == pytest.approx(0.15 * 64_000)
    assert stored.flops["backward_2x"] == pytest.approx(64_000 * (0.15 * 30 + 3 * 10))
    assert whole.step is not None
    assert stored.step is not None
    assert whole.step.compute - stored.step.compute == pytest.approx(0.85 * 0.128)
    assert asked_share(planned, views=50) == pytest.approx(0.5)  # more than there are epochs: only runs share


def test_parts_are_named_once():
    names = [
        (part.kind, part.rows) for part in needed_parts([kd(), unix(), random(), mixup()], paper(2), (8, 8))
    ]
    assert sorted(names) == [
        ("optimizer", 0),
        ("scoring", 32),
        ("teacher", 24),
        ("teacher", 32),
        ("training", 24),
        ("training", 32),
    ]


def test_seconds_from_a_rate_by_hand():
    """1000 FLOPs per second: 64 · 10, 48 · 30, 48 · 3 · 10 of them; updates are free."""
    parts = needed_parts([unix()], paper(), (8, 8))
    found = {part.kind: seconds for part, seconds in from_flops(parts, LEDGER, 1000.0).items()}
    assert found == pytest.approx({"scoring": 0.64, "teacher": 1.44, "training": 1.44, "optimizer": 0.0})


def test_smaller_images_take_fewer_flops():
    student = PixelModel(create_model("resnet8", 10, 1), ModelCard("resnet8", 10, 1, (0.5,), (0.5,)))
    ledger = Ledger.of(student, student, (1, 8, 8))
    small = Part("training", 4, (4, 4))
    (seconds,) = from_flops([small], ledger, 1.0).values()
    assert seconds == 4 * 3 * ledger.flops_at((4, 4)) < 4 * 3 * ledger.student_flops


def test_means_of_steps():
    assert mean([]) is None
    step = mean([(StepTime(teacher=4.0), 1.0), (StepTime(teacher=1.0, loading=3.0), 2.0)])
    assert step == StepTime(teacher=2.0, loading=2.0)


@pytest.mark.parametrize(("gpus", "nodes"), [(3, 1), (64, 1), (8, 6)])
def test_a_batch_that_cannot_be_shared_out(gpus, nodes):
    with pytest.raises(UserError, match=r"cannot be shared out among .* --batch_size that is a multiple"):
        paper(gpus, nodes)


def test_too_few_rows_to_keep():
    with pytest.raises(UserError, match="fewer than 2"):
        predict(random(keep=0.25), paper(16), LEDGER, None)


# Timing


def networks() -> tuple[PixelModel, PixelModel]:
    teacher, student = (
        PixelModel(create_model(name, 10, 1), ModelCard(name, 10, 1, (0.5,), (0.5,)))
        for name in ("resnet14", "resnet8")
    )
    return teacher, student.train()


def test_each_part_does_what_it_says():
    """What the networks see, and whether gradients flow; nothing stays behind."""
    teacher, student = networks()
    seen: list[tuple[str, int, bool]] = []
    for name, network in (("teacher", teacher), ("student", student)):
        network.register_forward_hook(
            lambda module, args, output, name=name: seen.append((name, len(args[0]), output.requires_grad))
        )
    before = [p.clone() for p in student.parameters()]
    parts = needed_parts([unix()], paper(4), (8, 8))
    for part, run in part_calls(teacher, student, parts, (8, 8)).items():
        seen.clear()
        run()
        wanted = {
            "scoring": [("student", 16, False)],
            "teacher": [("teacher", 12, False)],
            "training": [("student", 12, True)],
            "optimizer": [],
        }
        assert seen == wanted[part.kind]
    assert all(torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))
    assert all(p.grad is None for p in student.parameters())


def test_shrunk_images_are_timed_small():
    teacher, student = networks()
    seen: list[torch.Size] = []
    student.register_forward_hook(lambda module, args, output: seen.append(args[0].shape))
    part_calls(teacher, student, [Part("scoring", 4, (6, 6))], (8, 8))[Part("scoring", 4, (6, 6))]()
    assert seen == [(4, 1, 6, 6)]


def test_parts_run_in_the_precision_asked_for():
    teacher, student = networks()
    seen: list[torch.dtype] = []
    for network in (teacher, student):
        network.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    parts = [Part("scoring", 4), Part("teacher", 4), Part("training", 4)]
    for run in part_calls(teacher, student, parts, (8, 8), torch.bfloat16).values():
        run()
    assert seen == [torch.bfloat16] * 3


def test_parts_are_timed():
    parts = needed_parts([kd(), unix()], paper(8), (8, 8))
    seconds = part_seconds(*networks(), parts, (8, 8), rounds=2)
    assert list(seconds) == parts
    assert all(value > 0 for value in seconds.values())


def test_more_rows_than_are_timed_take_as_much_longer(monkeypatch):
    """Each call takes 1 s: 64 rows that are timed as 16 take 4, 8 rows take 1, and so does the update."""
    monkeypatch.setattr(
        timing, "interleaved", lambda calls, rounds, device: {part: [1.0] * rounds for part in calls}
    )
    parts = [Part("teacher", 64), Part("training", 48), Part("scoring", 8), Part("optimizer")]
    seconds = part_seconds(*networks(), parts, (8, 8), rounds=3, most_rows=16)
    assert list(seconds.values()) == [4.0, 3.0, 1.0, 1.0]


# The command

PAIR = ("plan", "--teacher", "resnet14", "--student", "resnet8")


def printed(capsys, *words: str) -> tuple[str, dict[str, list[str]]]:
    """What `plan` says, and the cells of each line of its tables by the first of them, tables joined."""
    assert call(*PAIR, *words) == 0
    text = capsys.readouterr().out
    rows: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith(" ") and (cells := line.split()):
            rows.setdefault(cells[0], []).extend(cells[1:])
    return text, rows


def student_facts() -> tuple[int, int, int]:
    """Forward FLOPs of both networks at 32 pixels with 1000 classes; bytes of the student's weights."""
    teacher, student = (create_model(name, 1000, 3) for name in ("resnet14", "resnet8"))
    ledger = Ledger.of(student, teacher, (3, 32, 32))
    return ledger.teacher_flops, ledger.student_flops, 4 * sum(p.numel() for p in student.parameters())


def test_a_billion_images_on_paper(capsys):
    words = (
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
    )
    text, rows = printed(
        capsys,
        *words,
        "--gpus",
        "8",
        "--nodes",
        "4",
        "--tflops",
        "10",
        "--node_bandwidth",
        "5",
        "--hourly_price",
        "2",
    )
    teacher, student, size = student_facts()
    assert "2 epochs of 1,000,000,000 images of 32 pixels in 1,000 classes" in text
    assert "4 × 8 = 32 processes, batches of 4,096, 128 images each" in text
    step = [
        128 * student / 1e10,
        96 * teacher / 1e10,
        96 * 3 * student / 1e10,
        0.0,
    ]  # in ms at 10 TFLOPs a second
    cells = [float(cell) for cell in rows["unix"][:4]]
    assert cells == pytest.approx(step, rel=6e-3)
    gradients = 1000 * (2 * 31 / 32 * size / 5e9 + 62 * 10e-6)  # one bucket
    assert float(rows["unix"][4]) >= gradients
    assert float(rows["unix"][6]) == pytest.approx(sum(step) + float(rows["unix"][4]), rel=1e-2)
    # scored, asked, trained; both conventions
    assert rows["unix"][8:11] == ["2G", "1.5G", "1.5G"]
    flops = [2e9 * student + 1.5e9 * (teacher + (1 + backward) * student) for backward in (1, 2)]
    assert [float(cell.rstrip("P")) for cell in rows["unix"][11:13]] == pytest.approx(
        [value / 1e15 for value in flops], rel=6e-3
    )
    hours = 2e9 / 4096 * float(rows["unix"][6]) / 3.6e6
    assert [float(cell) for cell in rows["unix"][13:16]] == pytest.approx(
        [hours, 32 * hours, 64 * hours], rel=1e-2
    )
    assert rows["1"][:2] == ["2.00", "TB"]  # 2,004 bytes each
    assert "Given: 10 TFLOPs per second of a GPU" in text
    assert "5 GB/s between nodes" in text
    assert (
        f"Assumed: {WITHIN.bandwidth / 1e9:g} GB/s within a node; {1e6 * BETWEEN.latency:g} µs a message"
        in text
    )
    assert "GPUs are not measured" not in text


def test_a_plan_on_paper_on_a_cpu_says_that_no_gpu_was_measured(capsys):
    words = ("--data", "digits", "--gpus", "2", "--batch_size", "16", "--rounds", "1")
    text, rows = printed(capsys, *words)
    assert "240 epochs of 1,438 images of 8 pixels in 10 classes" in text
    assert {"kd", "unix", "random", "student-alone", "infobatch"} <= rows.keys()
    assert all(float(cell.replace(",", "")) > 0 for cell in rows["unix"][:7])
    assert "Measured here, on a CPU" in text
    assert "on 8 images;" in text
    assert "GPUs are not measured on this machine" in text
    assert "process-" in text
    assert "GPU-" not in text


def test_images_of_a_teachers_own_data(tmp_path, capsys):
    """A run folder knows the size and the classes of its images; --images says how many."""
    teacher = make_teacher(tmp_path / "run")
    assert call("plan", "--teacher", teacher, "--student", "resnet8", "--images", "1e9", "--rounds", "0") == 0
    text = capsys.readouterr().out
    assert "1,000,000,000 images of 8 pixels in 10 classes" in text


def test_imagenet_without_timing(capsys):
    words = (
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
    )
    text, rows = printed(capsys, *words)
    assert "100 epochs of 1,281,167 images of 32 pixels in 1,000 classes" in text
    assert "1 process, batches of 64, 64 images each" in text
    assert rows["kd"][:3] == ["0", "128M", "128M"]
    assert rows["kd"][5:] == ["–", "–"]
    assert rows["4"][:2] == ["10.27", "GB"]  # 1,281,167 · 4 · (1000 · 2 + 4) bytes
    assert "Nothing was timed (--rounds 0)" in text
    assert "a message" not in text  # one process sends none


def test_a_part_of_many_images_is_timed_and_said(capsys):
    text, _ = printed(capsys, "--data", "digits", "--gpus", "1", "--batch_size", "40", "--rounds", "1")
    assert "32 of 40 images, taken to be linear" in text


@pytest.mark.parametrize(
    ("words", "warning"),
    [
        (("--loading", "1"), "waits for images"),
        (("--bandwidth", "0.001"), "sends for longer than it computes"),
    ],
)
def test_what_a_step_waits_for_is_a_warning(words, warning, capsys):
    text, _ = printed(capsys, "--data", "digits", "--gpus", "2", "--tflops", "1", *words)
    assert f"WARNING: a step {warning}" in text


def test_how_fast_a_store_is_written():
    """6,400 answers of 10 · 2 + 4 bytes in an epoch of 10 seconds."""
    run = PaperRun(kd(), {}, {}, steps=1000, step=StepTime(training=0.1))
    assert writing(run, paper(), 10) == ", up to 15.36 kB per second written at first, read later on"
    assert writing(replace(run, step=None), paper(), 10) == ""


@pytest.mark.parametrize("text", ["many", "0", "-3", "1.5", "nan", "inf", ""])
def test_what_is_no_number_of_images(text):
    with pytest.raises(UsageError, match="--images is a number"):
        parse_images(text)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--images", "many"), "--images is a number"),
        (("--gpus", "0"), "gpus"),
        (("--tflops", "-1"), "tflops"),
        (("--gpus", "2", "--match-kd"), "leave --gpus or the target out"),
        (("--hourly_price", "2", "--budget", "50%"), "leave --hourly_price or the target out"),
        (("--data", "digits", "--images", "1e6", "--classes", "5"), "--classes is for images without data"),
        (("--gpu", "2"), "did you mean --gpus?"),
    ],
)
def test_what_a_plan_on_paper_does_not_allow(words, told, capsys):
    assert call(*PAIR, *words) == 2
    assert told in capsys.readouterr().err


def test_a_batch_that_cannot_be_shared_out_is_an_error(capsys):
    assert call(*PAIR, "--gpus", "3") == 1
    assert "--batch_size that is a multiple of 3" in capsys.readouterr().err
