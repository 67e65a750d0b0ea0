"""Methods with options of their own as words: what they stand for, what is refused, where their runs lie."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from running import SMALL, call, distilled, make_teacher, summary
from unixkd.config import MethodConfig, read_yaml
from unixkd.errors import UsageError, UserError
from unixkd.names import OPTIONS, file_name, label_of, parse_variant, parse_variants
from unixkd.training import compare
from unixkd.training.compare import matched_jobs, plan_jobs


def test_words_are_configurations():
    assert parse_variant("kd") == MethodConfig("kd")
    assert parse_variant("unix:steepness=1000:keep=0.5") == MethodConfig("unix", keep=0.5, steepness=1000.0)
    words = "stale:scorer=margin:max_age=3:full_last=.5"
    assert parse_variant(words) == MethodConfig("stale", scorer="margin", max_age=3, full_last=0.5)
    assert parse_variant("unix:per_sample_lambda=True:ramp=cosine") == MethodConfig(
        "unix", per_sample_lambda=True, ramp="cosine"
    )


def test_every_option_of_a_method_can_be_given():
    words = {float: "0.25", int: "4", bool: "true"}
    for field in fields(MethodConfig):
        if field.name != "name":
            kind = next((k for k in words if k.__name__ in str(field.type)), None)
            word = (
                words[kind]
                if kind
                else {"curve": "step", "scorer": "margin", "scoring_precision": "bf16"}.get(
                    field.name, "eval"
                )
            )
            word = "cosine" if field.name == "ramp" else word
            assert getattr(parse_variant(f"unix:{field.name}={word}"), field.name) is not None
    assert "name" not in OPTIONS


@given(
    st.builds(
        MethodConfig,
        st.sampled_from(["unix", "stale"]),
        keep=st.none() | st.floats(0, 1),
        steepness=st.none() | st.floats(0, 1e9),
        curve=st.none() | st.sampled_from(["sigmoid", "step", "none"]),
        per_sample_lambda=st.none() | st.booleans(),
        max_age=st.none() | st.integers(0, 99),
    )
)
def test_a_label_says_exactly_what_was_meant(config):
    assert parse_variant(label_of(config)) == config
    assert set(file_name(label_of(config))) & set('/\\:*?"<>| ') == set()


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("unix:kep=0.5", "did you mean 'keep'"),
        ("unix:name=kd", "unknown option"),
        ("unix:keep", "given as in"),
        ("unix:keep=", "given as in"),
        ("unix:", "given as in"),
        (":keep=1", "given as in"),
        ("unix:keep=half", "keep must be a number, not 'half'"),
        ("unix:keep=nan", "keep must be a number"),
        ("unix:max_age=1.5", "max_age must be a whole number"),
        ("unix:max_age=" + 4000 * "9", "max_age must be a whole number"),
        ("unix:per_sample_lambda=2", "true or false"),
        ("unix:scorer=entropie", "did you mean 'entropy'"),
        ("unix:keep=0.5:keep=0.5", "keep is given twice"),
    ],
)
def test_what_is_no_variant_is_named(word, told):
    with pytest.raises(UsageError, match=told):
        parse_variant(word)


def test_two_words_for_the_same_are_refused():
    with pytest.raises(UsageError, match=r"twice: unix:keep=0\.5:steepness=10"):
        parse_variants(["unix:keep=0.5:steepness=10", "kd", "unix:steepness=1e1:keep=.50"])
    with pytest.raises(UserError, match="named twice"):
        plan_jobs(distilled("t"), [MethodConfig("unix", keep=0.5)] * 2, [0], "out")


def test_jobs_of_variants_have_labels_and_folders_of_their_own(tmp_path):
    base = distilled(tmp_path, epochs=7)
    plain, changed = plan_jobs(base, [MethodConfig("unix"), MethodConfig("unix", keep=0.5)], [3], tmp_path)
    assert (plain.config.label, plain.folder.name) == (None, "unix-seed3")
    assert (changed.config.label, changed.folder.name) == ("unix:keep=0.5", "unix,keep=0.5-seed3")
    assert replace(changed.config, label=None, method=plain.config.method) == plain.config
    (matched,) = matched_jobs(base, {"unix:keep=0.5": 4}, [3], tmp_path)
    assert (matched.config.label, matched.folder.name) == ("kd@unix:keep=0.5", "kd@unix,keep=0.5-seed3")


def test_the_command_compares_variants_and_matches_their_cost(tmp_path, capsys):
    teacher = make_teacher(tmp_path / "teacher")
    methods = "kd,random,random:keep=0.5"
    words = ["compare", "--teacher", teacher, "--student", "resnet8", "--methods", methods, "--seeds", "0"]
    words += [*SMALL[:-1], "4", "--train.threads", 1, "--match-cost", "--jobs", 1, "--out", tmp_path / "out"]
    assert call(*words) == 0
    runs = {path.name: path for path in (tmp_path / "out/runs").iterdir()}
    variant, matched = runs.pop("random,keep=0.5-seed0"), runs.pop("kd@random,keep=0.5-seed0")
    assert sorted(runs) == ["kd-seed0", "kd@random-seed0", "random-seed0"]
    # Batches of 32, 32, 32 and 4 images keep 16, 16, 16 and 4: 52 of 100.
    assert summary(variant)["method"] == "random:keep=0.5"
    assert summary(variant)["cost"]["images"]["trained"] == 4 * 52
    assert read_yaml(variant / "run.yaml")["method"]["keep"] == 0.5
    assert (summary(matched)["method"], summary(matched)["epochs"]) == ("kd@random:keep=0.5", 2)
    page = (tmp_path / "out/report.html").read_text()
    assert "random:keep=0.5" in page
    capsys.readouterr()
    assert call(*words) == 0
    assert "5 of 5 runs are finished already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("methods", "told", "code"),
    [
        ("unix,unix:kep=0.5", "did you mean 'keep'", 2),
        ("unix,unxi:keep=0.5", "did you mean 'unix'", 2),
        ("unix:keep=0.5,unix:keep=.5", "named twice", 2),
        ("unix,unix:keep=1.5", r"keep (k/N) is a share of the batch and must lie in (0, 1], got 1.5", 1),
        ("kd,kd:steepness=3", "steepness belongs to the sigmoid curve", 1),
    ],
)
def test_a_faulty_variant_waits_for_nothing(methods, told, code, tmp_path, capsys, monkeypatch):
    for name in ("resolve", "remembered"):  # nothing is built or probed
        monkeypatch.setattr(compare, name, None)
    words = ("--teacher", "resnet14", "--student", "resnet8", "--methods", methods, "--out", tmp_path / "out")
    assert call("compare", *words) == code
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
