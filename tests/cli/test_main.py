"""The command line: help, names, precedence, --print-config, exit codes."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from running import call
from unixkd.cli import main, options
from unixkd.data import load
from unixkd.errors import UserError
from unixkd.method.unix import METHODS
from unixkd.models import model_names
from unixkd.names import DATA, methods, models

RECIPE = "cifar100/wrn_40_2-MobileNetV2"


def parsed(*words: str):
    return main.parse(words[0], words[1:])


def failing(capsys, *words: object, code: int = 2) -> str:
    """The message of a command that must fail in one or two lines, without a traceback."""
    assert call(*words) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("unixkd: error: ")
    assert captured.err.count("\n") <= 2
    assert "Traceback" not in captured.err
    return captured.err


# Help and start-up


def test_help_version_and_misspelt_names_import_no_torch():
    script = """
import sys
from unixkd.cli import main as cli
from unixkd.cli.options import COMMANDS
def call(*words):
    try:
        return cli.main(list(words))
    except SystemExit as stop:
        return stop.code
assert call("--help") == call("-h") == call("--version") == 0
assert all(call(name, "--help") == 0 for name in COMMANDS)
assert call() == call("distil") == call("train", "--modle", "x") == call("train", "--model", "resnet9") == 2
assert call("train", "--model", "resnet8", "--data", "digit") == 2
assert call("distill", "--method", "unxi") == call("compare", "--methods", "kd,unxi") == 2
assert call("train", "--model", "resnet8", "--print-config") == 0
print(sorted({"torch", "numpy", "torchvision", "lightning_fabric", "rich"} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"
    assert "Traceback" not in result.stderr


def test_the_process_exits_with_the_code_of_main():
    script = "import sys; from unixkd.cli.main import main; sys.exit(main())"
    for words, code in (([], 2), (["--version"], 0), (["distil"], 2)):
        result = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, check=False)
        assert result.returncode == code


def test_the_overview_names_every_command(capsys):
    assert call("--help") == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in options.COMMANDS)


@pytest.mark.parametrize("name", options.COMMANDS)
def test_help_of_a_command_lists_its_options(name, capsys):
    assert call(name, "--help") == 0
    text = capsys.readouterr().out
    assert f"usage: unixkd {name}" in text
    assert all(f"--{group}.name" in text for group in options.COMMANDS[name].groups if group in "model data")


def test_without_arguments_the_overview_is_shown_as_a_usage_error(capsys):
    assert call() == 2
    assert "usage: unixkd COMMAND" in capsys.readouterr().out


def test_no_command_needs_options_to_be_parsed():
    """`unixkd demo` stands alone; the others complain about what is missing, by name."""
    assert parsed("demo").out == "unixkd-demo"
    assert parsed("train").model.name == ""


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        (("train",), "--model"),
        (("distill",), "--teacher"),
        (("distill", "--teacher", "vgg8"), "--student"),
        (("compare", "--student", "vgg8"), "--teacher"),
        (("plan", "--teacher", "vgg8"), "--student"),
        (("evaluate",), "run"),
        (("predict", "run"), "images"),
        (("report",), "folders"),
        (("export",), "run"),
    ],
)
def test_what_is_missing_is_named(words, missing, capsys):
    assert missing in failing(capsys, *words)


# Names


def test_the_names_known_without_torch_are_those_of_the_tables():
    assert models() == model_names()
    assert list(methods()) == list(METHODS)
    assert {name.partition(":")[0] for name in DATA} == {*load._BY_NAME, *load._BY_PREFIX, "stream"}


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (("distil",), "distill"),
        (("train", "--modle", "resnet8"), "--model"),
        (("train", "--train.lrr", "0.1"), "--train.lr"),
        (("train", "--model", "resnet9"), "resnet8"),
        (("train", "--model.name=wrn_16_3"), "wrn_16_2"),
        (("train", "--model", "resnet8", "--data", "digit"), "digits"),
        (("train", "--model", "resnet8", "--data", "folder"), "folder:PATH"),
        (("train", "--model", "resnet8", "--data", "digits:3"), "digits"),
        (("train", "--model", "resnet8", "--data", "folders:/x"), "folder:PATH"),
        (("train", "--train.optimizer", "adam"), "adamw"),
        (("train", "--train.schedule", "cosin"), "cosine"),
        (("train", "--train.precision", "bf8"), "bf16"),
        (("distill", "--method.scorer", "entropie"), "entropy"),
        (("distill", "--teacher", "vgg13", "--student", "resnet8", "--method", "unxi"), "unix"),
        (("distill", "--teacher", "ShufleV2", "--student", "resnet8"), "ShuffleV2"),
        (("compare", "--methods", "kd,unix-radnom"), "unix-random"),
        (("train", "--recipe", "cifar100/vgg13"), "cifar100/vgg13-vgg8"),
        (("plan", "--recipe", "cifar100/vgg13-vgg9"), "cifar100/vgg13-vgg8"),
    ],
)
def test_a_misspelt_name_gets_the_nearest_one(words, near, capsys):
    assert f"did you mean {near}" in failing(capsys, *words).replace("'", "")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("train", "--epochs", "many"), ("train.epochs", "int", "many")),
        (("train", "--epochs", "1.5"), ("train.epochs", "1.5")),
        (("train", "--lr"), ("--train.lr",)),
        (("train", "--train.nesterov", "perhaps"), ("nesterov", "perhaps")),
        (("compare", "--seeds", "0,x"), ("seeds", "x")),
        (("compare", "--jobs", "0"), ("jobs", "0")),
        (("predict", "run", "a.png", "--top", "0"), ("top", "0")),
        (("plan", "--rounds", "-1"), ("rounds", "-1")),
        (("train", "stray"), ("stray",)),
        (("train", "--config"), ("config",)),
        (("train", "--config", "/nowhere/a.yaml"), ("/nowhere/a.yaml",)),
    ],
)
def test_a_wrong_value_is_named_with_its_option(words, told, capsys):
    message = failing(capsys, *words)
    assert all(word in message for word in told)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("train:\n  epoch: 3\n", "epoch"),
        ("trian:\n  epochs: 3\n", "trian"),
        ("train:\n  epochs: many\n", "epochs"),
        ("train: 3\n", "train"),
        ("recipe: cifar100/vgg13\n", "cifar100/vgg13-vgg8"),
        ("recipe: 3\n", "recipe"),
        ("recipe: [a]\n", "recipe"),
        ("train: {epochs: 3\n", "config"),
        ("train:\n\tepochs: 3\n", "config"),
        ("just words", "config"),
        ("- 1\n- 2\n", "config"),
        ("label: !!python/object/apply:os.system [echo hacked]\n", "config"),
        ("label: !tag 3\n", "config"),
        ("\0", "config"),
    ],
)
def test_a_faulty_yaml_file_is_refused(text, told, capsys, tmp_path):
    path = tmp_path / "options.yaml"
    path.write_text(text)
    message = failing(capsys, "train", "--config", path)
    assert told in message
    assert "hacked" not in message.replace("echo hacked", "")


def test_a_yaml_file_that_is_no_text_or_a_folder_is_refused(capsys, tmp_path):
    (tmp_path / "binary.yaml").write_bytes(bytes(range(128, 256)))
    failing(capsys, "train", "--config", tmp_path / "binary.yaml")
    failing(capsys, "train", "--config", tmp_path)


def test_a_misspelt_yaml_key_is_answered_with_the_nearest_one(capsys, tmp_path):
    (tmp_path / "options.yaml").write_text("train:\n  epoch: 3\n")
    assert "did you mean --train.epochs" in failing(capsys, "train", "--config", tmp_path / "options.yaml")


@pytest.mark.parametrize("line", ["data:\n  holdout: null\n", "train:\n  milestones: null\n"])
def test_a_null_where_there_has_to_be_a_value_is_named(line, capsys, tmp_path):
    (tmp_path / "options.yaml").write_text(line)
    group, name = line.replace(":", "").split()[:2]
    assert f"{group}.{name} is null, but must be" in failing(
        capsys, "train", "--config", tmp_path / "options.yaml"
    )


def test_a_null_that_leaves_it_to_a_default_is_none(tmp_path):
    (tmp_path / "options.yaml").write_text("data:\n  views: null\n")
    assert parsed("train", "--config", str(tmp_path / "options.yaml")).data.views is None


# Precedence, shorthands, lists


@pytest.mark.parametrize("flag_first", [False, True])
def test_flag_beats_file_beats_recipe_beats_default(flag_first, tmp_path):
    """epochs: 30 by default, 240 in the recipe; lr 0.05 by default, 0.01 in this recipe's; and so on."""
    path = tmp_path / "options.yaml"
    path.write_text(f"recipe: {RECIPE.replace('wrn_40_2', 'vgg13')}\ntrain:\n  epochs: 7\n  batch_size: 16\n")
    flag, file = ("--epochs", "5"), ("--config", str(path))
    train = parsed("distill", *(flag + file if flag_first else file + flag)).train
    assert train.epochs == 5  # the flag
    assert train.batch_size == 16  # the file; 64 in the recipe
    assert train.lr == 0.01  # the recipe; 0.05 by default
    assert train.schedule == "multistep"  # the recipe; cosine by default
    assert train.eval_every == 1  # the default


def test_the_imagenet_recipe_takes_its_data_from_the_command_line_and_gives_way_to_flags_and_files(tmp_path):
    words = ("--recipe", "imagenet/resnet34-resnet18", "--data", "folder:imagenet")
    path = tmp_path / "options.yaml"
    path.write_text("train:\n  epochs: 7\n  lr: 0.3\nloss:\n  ce: 0\n")
    given = parsed("distill", *words, "--config", str(path), "--lr", "0.2")
    assert (given.data.name, given.data.size) == ("folder:imagenet", 224)
    assert (given.teacher.name, given.teacher.pretrained) == ("torchvision:resnet34", True)
    assert (given.student.name, given.student.pretrained) == ("torchvision:resnet18", False)
    assert (given.train.lr, given.train.epochs, given.train.batch_size) == (0.2, 7, 256)
    assert (given.loss.kd, given.loss.ce, given.loss.temperature) == (0.5, 0.0, 1.0)
    assert parsed("plan", *words).batch_size == 256
    assert parsed("plan", *words, "--batch_size", "32").batch_size == 32
    assert parsed("compare", *words).train.milestones == [0.3, 0.6, 0.9]
    assert parsed("train", *words).model.name == "torchvision:resnet34"


def test_a_recipe_on_the_command_line_beats_that_of_the_file(tmp_path):
    path = tmp_path / "options.yaml"
    path.write_text("recipe: cifar100/vgg13-vgg8\nteacher:\n  weights: w.pth\n")
    options_ = parsed("distill", "--config", str(path), "--recipe", "cifar100/resnet56-resnet20")
    assert (options_.teacher.name, options_.student.name) == ("resnet56", "resnet20")
    assert options_.teacher.weights == "w.pth"


def test_the_recipe_of_train_is_the_teachers():
    options_ = parsed("train", "--recipe", "cifar100/vgg13-MobileNetV2")
    assert (options_.model.name, options_.train.lr, options_.data.name) == ("vgg13", 0.05, "cifar100")


def test_shorthands_and_lists():
    short = parsed(
        *("distill", "--teacher", "vgg13", "--student=vgg8", "--method", "hard", "--data", "cifar10"),
        *("--epochs", "3", "--lr=0.5", "--seed", "9", "--device", "cpu"),
    )
    assert (short.teacher.name, short.student.name, short.method.name) == ("vgg13", "vgg8", "hard")
    assert (short.data.name, short.train.epochs, short.train.lr) == ("cifar10", 3, 0.5)
    assert (short.train.seed, short.train.device) == (9, "cpu")
    lists = parsed("compare", "--methods", "kd,unix", "--seeds=4,5")
    assert (lists.methods, lists.seeds) == (["kd", "unix"], [4, 5])
    lists = parsed("compare", "--methods=[hard]", "--seeds", "[1, 2]")
    assert (lists.methods, lists.seeds) == (["hard"], [1, 2])


def test_no_option_may_be_abbreviated(capsys):
    failing(capsys, "train", "--train.epoch", "3")


@pytest.mark.parametrize("command", ["train", "distill", "compare", "plan"])
def test_print_config_fed_back_gives_the_same_options(command, capsys, tmp_path):
    words = [command, "--recipe", "cifar100/vgg13-vgg8", "--data.limit", "50", "--data.holdout", "0.125"]
    if command != "plan":
        words += ["--lr", "1e-3", "--train.milestones", "[0.25,0.5]", "--train.ema_decay", "0.99"]
    if command == "distill":
        words += ["--loss.at", "1000", "--method.keep", "0.5", "--reference_epochs", "3", "--label", "on: [x"]
    assert call(*words, "--print-config") == 0
    path = tmp_path / "options.yaml"
    path.write_text(capsys.readouterr().out)
    again, first = parsed(command, "--config", str(path)), parsed(*words)
    for name in {*vars(first)} - {"config", "given"}:
        assert again[name] == first[name], name
    assert yaml.safe_load(path.read_text())["data"]["holdout"] == 0.125


def test_resume_and_overwrite_exclude_each_other(capsys, tmp_path):
    words = ("train", "--model", "resnet8", "--out", tmp_path / "run", "--resume", "--overwrite")
    assert "exclude" in failing(capsys, *words)
    assert not (tmp_path / "run").exists()


def test_ctrl_c_exits_with_75_and_says_how_to_go_on(monkeypatch, capsys):
    from unixkd.cli import handlers

    def stop(options):
        raise KeyboardInterrupt

    monkeypatch.setitem(handlers.HANDLERS, "train", stop)
    assert call("train", "--model", "resnet8") == 75
    assert "--resume" in capsys.readouterr().err


# Whatever is typed is a usage error, never a traceback

WORDS = st.sampled_from(
    [
        *("--model", "--teacher", "--data", "--config", "--recipe", "--methods", "--seeds", "--seed", "--lr"),
        *("--epochs", "--train", "--train.", "--train.lr", "--train.milestones", "--data.limit", "--method"),
        *("--method.keep", "--out", "--resume", "--jobs", "--top", "--label", "--loss.kd", "--print-config"),
        *("[", "]", "{", "{a: 1}", "[1,2]", "a: b: c", "null", "1e400", "nan", "-1", "--", "-", "=", "--=3"),
        *("!!python/object:os.system", "*a", "&a", "%", "'", '"', "\n", "é", "resnet8", "unix", "digits", ""),
    ]
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
OPTION = st.builds("--{}={}".format, st.sampled_from(["train.lr", "data.name", "seeds", "recipe", "x"]), TEXT)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    command=st.sampled_from(sorted(options.COMMANDS)),
    words=st.lists(st.one_of(WORDS, TEXT, OPTION), max_size=6),
)
def test_fuzzed_arguments_are_parsed_or_refused(command, words, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    with contextlib.suppress(UserError, SystemExit):  # refused, or --help and --print-config
        options.check_names(main.parse(command, words))
    capsys.readouterr()


@pytest.mark.parametrize("words", [("--recipe", "x"), ("--config", "x"), ("--model", "x"), ("--nope",)])
def test_what_the_parser_refuses_is_a_usage_error(words):
    with pytest.raises(UserError) as caught:
        options.check_names(main.parse("train", words))
    assert caught.value.exit_code == 2


# Counts for shares, flags of the reference code, hints


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("distill --method.keep 48", "48 of 64 (batch_size) is 0.75"),
        ("distill --method.mix_from 32", "32 of 64 (batch_size) is 0.5"),
        ("distill --train.batch_size 128 --method.keep_end 96", "96 of 128 (batch_size) is 0.75"),
        ("distill --train.batch_size 32 --method.keep 48", "48 of 64 (batch_size) is 0.75"),
        ("distill --method.full_last 3", "3 of 30 (epochs) is 0.1"),
        (
            "train --epochs 240 --train.milestones [150,180,210]",
            "150, 180, 210 of 240 (epochs) is 0.625, 0.75, 0.875",
        ),
        ("distill --train.milestones 150,180,210", "150, 180, 210 of 240 (epochs) is 0.625, 0.75, 0.875"),
        ("compare --epochs 100 --train.milestones=30,60", "30, 60 of 100 (epochs) is 0.3, 0.6"),
        ("compare --methods kd,unix:keep=16", "16 of 64 (batch_size) is 0.25"),
        ("plan --batch_size 32 --method unix --method.keep 16", "16 of 32 (batch_size) is 0.5"),
    ],
)
def test_a_count_is_answered_with_the_share_that_is_meant(words, said, capsys):
    assert said in failing(capsys, *words.split())


@pytest.mark.parametrize(
    "words",
    [
        "--method.keep 1 --method.mix_from 1",
        "--method stale --method.keep 48",  # of an epoch's images: told elsewhere
        "--method.keep 1.5",
        "--method.keep 500",
        "--train.milestones 0.5,1",
    ],
)
def test_what_is_no_count_of_the_batch_is_not_converted(words):
    options.check_shares(parsed("distill", *words.split()))


def test_lists_are_written_with_and_without_brackets():
    for text in ("0.5,0.75", "[0.5, 0.75]"):
        assert parsed("train", "--train.milestones", text).train.milestones == [0.5, 0.75]
    assert parsed("distill", "--loss.student_layers=a,b").loss.student_layers == ["a", "b"]


@pytest.mark.parametrize(
    ("flag", "ours"),
    [
        *(("--k 48", "--method.keep"), ("--b 32", "--method.mix_from"), ("--w=10", "--method.steepness")),
        *(("--epoch 3", "--epochs"), ("--batch-size 64", "--train.batch_size"), ("--gpu-id 0", "--device")),
        *(("--weight-decay 0", "--train.weight_decay"), ("--momentum 0", "--train.momentum")),
        *(
            ("--milestones 3", "--train.milestones"),
            ("--teacher-path x", "--teacher"),
            ("--T 4", "--loss.temperature"),
        ),
        *(
            ("--teacher-ckpt x", "--teacher"),
            ("--student-arch x", "--student"),
            ("--ce-weight 0", "--loss.ce"),
        ),
        *(
            ("--kd-weight 0", "--loss.kd"),
            ("--other-distill AT", "--loss.at"),
            ("--strategy 3", "--method.scorer"),
        ),
        *(("--method.scorer 0", "random"), ("--method.scorer 1", "least_confidence")),
        *(("--method.scorer 2", "margin"), ("--method.scorer 3", "entropy")),
    ],
)
def test_a_flag_of_the_reference_code_gets_ours(flag, ours, capsys):
    assert f"did you mean {ours}?" in failing(capsys, "distill", *flag.split())


WRONG = (
    *(
        "--model",
        "--teacher",
        "--student",
        "--method",
        "--data",
        "--epochs",
        "--lr",
        "--seed",
        "--device",
        "--k",
    ),
    *(
        "--b",
        "--w",
        "--labels",
        "--batch_size",
        "--train.lr",
        "--method.kep",
        "--loss.kd",
        "--methods",
        "--modle",
    ),
    *(
        "--epoch",
        "--strategy",
        "--T",
        "--student-arch",
        "--gpu-id",
        "--out",
        "--formats",
        "--top",
        "--x",
        "--resum",
    ),
)


@pytest.mark.parametrize("name", options.COMMANDS)
def test_a_hint_names_only_options_of_the_command(name, capsys):
    """Whatever is hinted at is not refused in its turn as unknown; one letter is like no name."""
    parser = main.make_parser(name)
    known = {string for action in parser._actions for string in action.option_strings}
    known |= {short for short, full in main.SHORTHANDS.items() if full in known}
    for word in WRONG:
        if word not in known:
            told = failing(
                capsys, name, *["x"] * (name in ("evaluate", "predict", "export", "report")), word, "3"
            )
            _, found, hint = told.partition("did you mean ")
            assert not found or hint.partition("?")[0] in known, told
            assert word != "--x" or not found


def test_a_name_that_belongs_to_another_command_gets_no_hint(capsys):
    for words in (
        ("evaluate", "--model", "vgg8"),
        ("report", "r", "--method", "unix"),
        ("predict", "--lr", "3"),
    ):
        assert "did you mean" not in failing(capsys, *words)
    assert "did you mean --methods?" in failing(capsys, "compare", "--method", "unix")
