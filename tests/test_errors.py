"""JSON and YAML from anybody: one line for whatever is wrong, no matter how little text asks for how much."""

from __future__ import annotations

import itertools
import os

import pytest

from unixkd.cli.main import parse, read_config
from unixkd.config import read_yaml
from unixkd.errors import MAX_BYTES, UsageError, UserError, parse_json, parse_yaml, read_json


def bomb(entry: str) -> str:
    """Twelve levels, each nine times the one before."""
    names = "abcdefghijklm"
    lines = [f"{b}: &{b} {entry % ','.join([f'*{a}'] * 9)}" for a, b in itertools.pairwise(names)]
    return "\n".join(["a: &a {x: 1}", *lines])


HOSTILE = {
    "lists of aliases": (bomb("[%s]"), "aliases stand for more than"),
    "merged aliases": (bomb("{<<: [%s]}"), "aliases stand for more than"),
    "an alias of itself": ("a: &a [*a]", "aliases stand for more than"),
    "thousands of digits": (f"a: {'9' * 5000}", "digits is out of range"),
    "many digits": (f"a: 0x{'f' * 5000}", "digits is out of range: a"),
    "flow depth": ("[" * 5000, "nested in more than 32"),
    "block depth": ("- " * 5000, "recursion"),
    "levels": ("\n".join(" " * level + "a:" for level in range(40)), "nested in more than 32"),
    "a null key": ("null: 1", "None is no name"),
    "a number as key": ("train: {1: 2}", "1 is no name"),
    "a list as key": ("[1]: 2", "unhashable"),
    "a tag": ("a: !!timestamp 2001-99-99", "month must be in"),
    "a set": ("a: !!set {b}", "a is a set"),
    "a name twice": ("train: {lr: 0.1, seed: 1, lr: 0.2}", "lr is there twice"),
    "a group twice": ("train: {lr: 0.1}\ntrain: {seed: 1}", "train is there twice"),
    "length": ("a" * (MAX_BYTES["YAML"] + 1), "has more than 32,768 bytes"),
}


@pytest.mark.parametrize(("text", "told"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_yaml_is_one_line_wherever_it_is_read(text, told, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=told) as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    with pytest.raises(UsageError, match=told):
        read_config(str(path))
    with pytest.raises(UsageError, match=told):
        parse("train", ["--model", "resnet8", "--train", str(path)])


def test_aliases_as_people_use_them_and_what_looks_like_a_date_are_read():
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: *a", "x") == {
        "a": {"x": 1},
        "b": {"x": 1, "y": 2},
        "c": {"x": 1},
    }
    assert parse_yaml("label: 2001-99-99", "x") == {"label": "2001-99-99"}
    assert parse_yaml("[010, 1:30, 10, -3, 0, 0x1f, 1_000]", "x") == ["010", "1:30", 10, -3, 0, 31, 1000]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ("train: {epochs: two}", r"train\.epochs: Expected `int`, got `str`"),
        ("train: 2001-99-99", r"train: Expected `object`, got `str`"),
        ("data: {name: null}", r"data\.name: Expected `str`, got `null`"),
        ("model: {mean: {a: 1}}", r"student\.mean: Expected `array \| null`, got `object`"),
        ("label: [1]", r"label: Expected `str \| null`, got `array`"),
    ],
)
def test_a_run_yaml_with_values_of_other_types_is_named(values, told, tmp_path):
    (tmp_path / "run.yaml").write_text(values)
    with pytest.raises(UserError, match=rf"run\.yaml: {told}"):
        read_yaml(tmp_path / "run.yaml")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[" * 100_000, "recursion"),
        ('{"a":' * 40 + "1" + "}" * 40, "nested in more than 32"),
        (f'{{"a": {"9" * 5000}}}', "digits is out of range"),
        (f'{{"a": [1, {"9" * 400}]}}', "digits is out of range: a"),
        (f'{{"a": [1.5, {"9" * 400}]}}', "digits is out of range: a"),
        ('"a"', "holds no JSON object"),
    ],
)
def test_hostile_json_is_one_line(text, told):
    with pytest.raises(UserError, match=f"^x .*{told}"):
        parse_json(text, "x")


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "summary.json")
    with pytest.raises(UserError, match=r"summary\.json' cannot be read: it is no file"):
        read_json(tmp_path / "summary.json")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="it is no file"):
        read_json(tmp_path / "zero.json")
