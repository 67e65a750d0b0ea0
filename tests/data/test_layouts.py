"""Folders as they are downloaded: splits by their usual names, labels beside the images, and what is said of others."""

from __future__ import annotations

import io
import itertools
import json

import pytest
from PIL import Image

from running import call
from unixkd.config import DataConfig
from unixkd.data import load_data
from unixkd.errors import UserError


def png(shade=0):
    buffer = io.BytesIO()
    Image.new("L", (4, 4), shade).save(buffer, "PNG")
    return buffer.getvalue()


def tree(root, *files, **texts):
    """Images of rising shades from 1 on, in the order in which they are named; texts by a file's name."""
    for shade, name in enumerate(files, 1):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(shade))
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def opened(root, **options):
    return load_data(DataConfig(f"folder:{root}", **options))


def shades(data, split="train"):
    """Each image's shade and the name of its class."""
    part = getattr(data, split)
    names = [None] * len(part) if part.labels is None else [data.class_names[i] for i in part.labels]
    return dict(zip(part.images[:, 0, 0, 0].tolist(), names, strict=True))


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "val"),
        ("train", "test"),
        ("train", "valid"),
        ("train", "validation"),
        ("train", "testing"),
        ("training", "validation"),
        ("Training", "Testing"),
        ("TRAIN", "dev"),
        ("train_images", "test_images"),
        ("seg_train/seg_train", "seg_test/seg_test"),
    ],
)
@pytest.mark.parametrize("top", ["", "set/", "set/inner/"])
def test_class_folders_below_splits(train, test, top, tmp_path):
    files = (f"{train}/a/0.PNG", f"{train}/b/0.Jpg", f"{test}/a/0.png", f"{test}/b/0.png")
    data = opened(tree(tmp_path, *(top + file for file in files)))
    assert shades(data) == {1: "a", 2: "b"}
    assert shades(data, "test") == {3: "a", 4: "b"}
    assert data.notes == ((f"{tmp_path}: read from {top.rstrip('/')}/ in it",) if top else ())


def test_words_of_splits_in_the_names_of_classes_make_no_split(tmp_path):
    tree(tmp_path, "bullet_train/0.png", "test_tube/0.png", "cat/0.png")
    assert opened(tmp_path).class_names == ("bullet_train", "cat", "test_tube")
    tree(tmp_path / "b", "Bus/0.png", "Car/0.png", "Train/0.png")
    assert opened(tmp_path / "b").class_names == ("Bus", "Car", "Train")
    tree(tmp_path / "c", "test_positive/0.png", "test_negative/0.png")
    assert opened(tmp_path / "c").class_names == ("test_negative", "test_positive")


@pytest.mark.parametrize(
    ("files", "labels"),
    [
        (("bus/0.png", "car/0.png", "train/0.png"), {1: "bus", 2: "car", 3: "train"}),
        (("train/0.png", "images/0.png"), {1: None}),
        (("train/0.png", "test_images/0.png"), {1: None}),
        (("train/a/0.png", "bus/0.png"), {1: "a"}),
        (("train/0.png", "bus/1.png", "labels.csv"), {1: "x"}),
        (("train/0.png", "bus/0.txt"), {1: None}),
    ],
)
def test_a_class_of_trains(files, labels, tmp_path):
    """A folder called train is a class where it holds images alone, unlabelled, beside other classes."""
    tree(tmp_path, *(name for name in files if name.endswith("png")))
    tree(tmp_path, **{name: "id,label\n0,x\n" for name in files if not name.endswith("png")})
    assert shades(opened(tmp_path)) == labels


@pytest.mark.parametrize(
    ("files", "advice"),
    [
        (("data/train/a/0.png", "data/train/b/0.png", "data/test/a/0.png", "docs/0.png"), "folder:{}/data"),
        (
            [f"{a}/{b}_set/0.png" for a in ("cat", "dog") for b in ("train", "val")],
            "PATH/train/CLASS/*.jpg and PATH/val/CLASS/*.jpg",
        ),
    ],
)
def test_splits_in_class_folders_are_refused(files, advice, tmp_path):
    tree(tmp_path, *files)
    with pytest.raises(
        UserError, match=r"(data|cat): holds splits \((train|train_set)\), so it is no class"
    ) as caught:
        opened(tmp_path)
    assert caught.value.details[-1] == f"would do: {advice.format(tmp_path)}"


@pytest.mark.parametrize(
    ("files", "train", "test"),
    [
        (("train/cat/x/0.png", "train/cat/y/0.png", "val/cat/0.png"), {1: "cat", 2: "cat"}, {3: "cat"}),
        (("train/in/x/0.png", "train/in/y/0.png", "val/x/0.png"), {1: "x", 2: "y"}, {3: "x"}),
        (
            ("train/in/x/0.png", "train/in/y/0.png", "val/in/x/0.png", "val/in/y/0.png"),
            {1: "x", 2: "y"},
            {3: "x", 4: "y"},
        ),
        (("train/images/x/0.png", "train/images/y/0.png", "val/images/0.png"), {1: "x", 2: "y"}, None),
        (("train/cat/x/0.png", "train/cat/y/0.png"), {1: "x", 2: "y"}, None),
    ],
)
def test_the_only_folder_of_a_split(files, train, test, tmp_path):
    """A class where another split has it as one, else what holds the classes."""
    data = opened(tree(tmp_path, *files))
    assert shades(data) == train
    assert (data.test and shades(data, "test")) == test


def test_kinds_of_a_class_are_no_splits(tmp_path):
    tree(tmp_path, "a/bullet_train/0.png", "a/test_tube/0.png", "b/train/0.png", "b/bus/0.png")
    assert shades(opened(tmp_path)) == {1: "a", 2: "a", 4: "b", 3: "b"}


def test_splits_beside_other_folders(tmp_path):
    """As in contests: two folders are a pair by the rest of their names, the others are named."""
    tree(tmp_path, *(f"seg_{name}/seg_{name}/{i}/0.png" for name in ("test", "train") for i in "ab"))
    tree(tmp_path, "seg_pred/0.png", **{"a_train/0.rec": "", "a_test/0.rec": ""})
    data = opened(tmp_path)
    assert shades(data) == {3: "a", 4: "b"}
    assert shades(data, "test") == {1: "a", 2: "b"}
    assert data.notes == (f"{tmp_path}: not used: a_test, a_train, seg_pred",)


def test_what_is_hidden_or_missing_is_counted(tmp_path):
    tree(
        tmp_path,
        "train/a/0.png",
        "train/b/0.png",
        "train/b/._0.png",
        "val/a/0.png",
        "__MACOSX/train/a/._0.png",
    )
    tree(tmp_path, **{".DS_Store": "", "train/.DS_Store": "", "train/a/Thumbs.db": ""})
    (tmp_path / "val" / "b").mkdir()
    data = opened(tmp_path)
    assert shades(data) == {1: "a", 2: "b"}
    assert data.notes == (
        f"{tmp_path}: 2 hidden files passed over",
        f"{tmp_path}/train: 3 hidden files passed over",
        f"{tmp_path}: no images to evaluate on of 1 of 2 classes: b",
    )


def test_tiny_imagenet(tmp_path):
    tree(
        tmp_path / "tiny-imagenet-200",
        *("train/n02/images/n02_0.JPEG", "train/n01/images/n01_0.JPEG"),
        *("val/images/val_0.JPEG", "val/images/val_1.JPEG", "test/images/test_0.JPEG"),
        **{
            "val/val_annotations.txt": "val_0.JPEG\tn02\t0\t32\t44\t62\nval_1.JPEG\tn01\t52\t55\t57\t59\n",
            "wnids.txt": "n02\nn01\n",
            "train/n01/n01_boxes.txt": "n01_0.JPEG\t0\t0\t9\t9\n",
        },
    )
    data = opened(tmp_path)
    place = tmp_path / "tiny-imagenet-200"
    assert shades(data) == {1: "n02", 2: "n01"}
    assert shades(data, "test") == {3: "n02", 4: "n01"}
    assert data.notes == (
        f"{tmp_path}: read from tiny-imagenet-200/ in it",
        f"{place}/train: 1 of 3 files are no images: .txt 1",
        f"{place}/val/val_annotations.txt: labels of 2 images (columns file, label)",
        f"{place}: not used: test",
    )


IMAGENET = (
    *("train/n03/a.JPEG", "train/n01/b.JPEG", "train/n02/c.JPEG"),
    *(f"val/ILSVRC2012_val_0000000{i}.JPEG" for i in (1, 2, 4)),
)


def test_imagenet_as_kaggle_ships_it(tmp_path):
    tree(
        tmp_path,
        *(f"ILSVRC/Data/CLS-LOC/{name}" for name in (*IMAGENET, "test/ILSVRC2012_test_00000001.JPEG")),
        **{
            "LOC_synset_mapping.txt": "n01 tench\nn02 goldfish\nn03 shark\n",
            "LOC_val_solution.csv": "ImageId,PredictionString\nILSVRC2012_val_00000004,n01 1 2 3 4\n"
            "ILSVRC2012_val_00000001,n02 1 2 3 4 n02 5 6 7 8\nILSVRC2012_val_00000002,n03 1 2 3 4 \n",
            "ILSVRC/ImageSets/CLS-LOC/val.txt": "ILSVRC2012_val_00000001 1\n",
        },
    )
    data = opened(tmp_path)
    assert data.class_names == ("n01", "n02", "n03")
    assert shades(data) == {1: "n03", 2: "n01", 3: "n02"}
    assert shades(data, "test") == {4: "n02", 5: "n03", 6: "n01"}
    assert data.notes == (
        f"{tmp_path}: read from ILSVRC/Data/CLS-LOC/ in it",
        f"{tmp_path}/LOC_val_solution.csv: labels of 3 images (columns file, label)",
        f"{tmp_path}/ILSVRC/Data/CLS-LOC: not used: test",
    )


def test_imagenets_devkit_numbers_classes_its_own_way(tmp_path):
    """Number 1 is n02 and not the first folder: without meta.mat nothing is evaluated on."""
    io = pytest.importorskip("scipy.io")
    tree(tmp_path, *IMAGENET)
    devkit = tmp_path / "ILSVRC2012_devkit_t12" / "data"
    devkit.mkdir(parents=True)
    truth = devkit / "ILSVRC2012_validation_ground_truth.txt"
    truth.write_text("1\n3\n2\n1\n")
    data = opened(tmp_path)
    assert data.test is None
    assert data.notes == (
        f"{truth}: not used: needs meta.mat beside it; or have Kaggle's LOC_val_solution.csv there",
        f"{tmp_path}: not used: ILSVRC2012_devkit_t12, val",
    )
    synsets = [(1, "n02", 0), (2, "n01", 0), (3, "n03", 0), (4, "n09", 3)]
    numpy = pytest.importorskip("numpy")
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("num_children", "O")]
    io.savemat(devkit / "meta.mat", {"synsets": numpy.array(synsets, dtype=kind).reshape(-1, 1)})
    data = opened(tmp_path)
    assert shades(data, "test") == {4: "n02", 5: "n03", 6: "n02"}
    assert data.notes[0] == f"{truth}: labels of 3 images (by meta.mat)"
    (devkit / "meta.mat").write_bytes(b"no table")
    with pytest.raises(UserError, match=r"meta\.mat: cannot be read as ImageNet's classes"):
        opened(tmp_path)


TABLES = {
    "labels.csv": "file_name,label\na.png,cat\nb.png,dog\n",
    "metadata.csv": "\ufefflabel;text;file_name\ncat;x, y;a.png\ndog;;b.png\n",
    "metadata.jsonl": '{"file_name": "a.png", "label": "cat"}\n\n{"file_name": "./b.png", "label": "dog"}\n',
    "annotations.tsv": "Image Path\tClass Name\n/kaggle/input/a.png\tcat\nC:\\\\data\\\\b.png\tdog\n",
    "Labels.CSV": "id,breed\na,cat\nb,dog\n",
}


@pytest.mark.parametrize("below", ["", "images/"])
@pytest.mark.parametrize("name", TABLES)
def test_a_table_beside_the_images(name, below, tmp_path):
    text = TABLES[name].replace("/kaggle/input", "/kaggle/input/images")
    tree(tmp_path, f"{below}b.png", f"{below}a.png", **{name: text.replace("data\\\\", "data\\\\images\\\\")})
    data = opened(tmp_path)
    assert data.class_names == ("cat", "dog")
    assert shades(data) == {1: "dog", 2: "cat"}
    (line,) = data.notes
    assert line.startswith(f"{tmp_path}/{name}: labels of 2 images (columns ")


def test_tables_of_splits(tmp_path):
    """As Kaggle's traffic signs: classes as folders to train on, and a table for the rest."""
    tree(tmp_path, "Train/10/0.png", "Train/9/0.png", "Test/0.png", "Test/1.png", "Meta/9.png")
    tree(tmp_path, **{"Test.csv": "Width,ClassId,Path\n4,9,Test/0.png\n4,10,Test/1.png\n"})
    data = opened(tmp_path)
    assert data.class_names == ("9", "10")
    assert shades(data, "test") == {3: "9", 4: "10"}
    assert data.notes[:2] == (
        f"{tmp_path}/Test.csv: labels of 2 images (columns Path, ClassId)",
        f"{tmp_path}: not used: Meta",
    )


def test_a_table_of_the_training_images_is_none_of_the_test_images(tmp_path):
    """Both splits have a 0.png: the row is the one's that is trained on."""
    tree(tmp_path, "train/0.png", "train/1.png", "test/0.png", "test/2.png")
    tree(tmp_path, **{"labels.csv": "id,label\n0,cat\n1,dog\n"})
    data = opened(tmp_path)
    assert shades(data) == {1: "cat", 2: "dog"}
    assert data.test is None
    tree(tmp_path, **{"labels.csv": "path,label\ntrain/0.png,cat\ntrain/1.png,dog\ntest/0.png,dog\n"})
    data = opened(tmp_path)
    assert shades(data, "test") == {3: "dog"}
    assert f"{tmp_path}/labels.csv: not used: 1 image without a row ({tmp_path}/test/2.png)" in data.notes


def test_a_column_of_splits(tmp_path):
    rows = "file,split,label\n0.png,train,a\n1.png,validation,b\n2.png,train,b\n3.png,test,a\n4.png,train,a\n"
    data = opened(tree(tmp_path, *(f"images/{i}.png" for i in range(4)), **{"metadata.csv": rows}))
    assert shades(data) == {1: "a", 3: "b"}
    assert shades(data, "test") == {4: "a"}
    unused = f"{tmp_path}/metadata.csv: not used: 2 of 5 rows (1.png)"
    assert unused in data.notes
    assert not any("without a row" in line for line in data.notes)  # each has one, of some split
    tree(tmp_path / "images", "9.png")
    lacking = f"{tmp_path}/metadata.csv: not used: 1 image without a row ({tmp_path}/images/9.png)"
    assert opened(tmp_path).notes.count(lacking) == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "file,label\n0.png,a\n0.png,b\n",
            "labels.csv: 0.png is a and b, where one class is wanted; or --data.labels false",
        ),
        (
            "file,label\n0.png,a\n1.png,\n",
            "labels.csv: sample 1 has label None, as 1 of 2 images have none ({root}/1.png): leave these images out, "
            "or train without labels (--data.labels false)",
        ),
        (
            f"file,label\n0.png,{'x' * 40}1\n0.png,{'x' * 40}2\n",
            f"labels.csv: 0.png is {'x' * 40} and {'x' * 40}, where one class is wanted; or --data.labels false",
        ),
        ("file,label\n0,a\n", "labels.csv: 0 may be {root}/0.jpg or {root}/0.png: give its folder"),
    ],
)
def test_faulty_tables(text, told, tmp_path):
    tree(tmp_path, "0.png", "1.png", "0.jpg" if "\n0,a" in text else "2.png", **{"labels.csv": text})
    with pytest.raises(UserError) as caught:
        opened(tmp_path)
    assert str(caught.value) == f"{tmp_path}/{told.format(root=tmp_path)}"


@pytest.mark.parametrize("word", ["-1", "", "nan", "NaN", "NA"])
def test_marks_of_a_missing_label_are_no_class(word, tmp_path):
    tree(tmp_path, "0.png", "1.png", "2.png", **{"labels.csv": f"id,label\n0,{word}\n1,b\n2,a\n"})
    with pytest.raises(UserError, match=r"sample 0 has label None, as 1 of 3 images have none"):
        opened(tmp_path)
    data = opened(tmp_path, labels=False)
    assert data.class_names == ("a", "b")
    assert f"{tmp_path}/labels.csv: 1 of 3 images without a label" in data.notes
    tree(tmp_path, **{"labels.csv": f"id,label\n0,{word}\n1,{word}\n2,{word}\n"})
    assert shades(opened(tmp_path)) == {1: None, 2: None, 3: None}


@pytest.mark.parametrize(
    "words", [("10.0", "2.0", "1.0", "1"), ("10", "2.0", "1.", "1"), (10.0, 2, "1.0", 1.0)]
)
def test_whole_numbers_written_as_floats_are_these_numbers(words, tmp_path):
    """Classes in the order of numbers, as a table of integers has them."""
    rows = "\n".join(json.dumps({"file": f"{i}.png", "label": word}) for i, word in enumerate(words))
    csv = "file,label\n" + "".join(f"{i}.png,{word}\n" for i, word in enumerate(words))
    tree(tmp_path, *(f"{i}.png" for i in range(4)))
    for name, text in (("labels.csv", csv), ("metadata.jsonl", rows)):
        tree(tmp_path, **{name: text})
        data = opened(tmp_path)
        assert data.class_names == ("1", "2", "10")
        assert shades(data) == {1: "10", 2: "2", 3: "1", 4: "1"}
        (tmp_path / name).unlink()


def test_splits_in_a_column_that_are_not_known_are_not_trained_on(tmp_path):
    rows = "file,split,label\n0.png,{},a\n1.png,b-side,b\n2.png,{},b\n"
    tree(tmp_path, "0.png", "1.png", "2.png", **{"labels.csv": rows.format("train", "training")})
    assert shades(opened(tmp_path)) == {1: "a", 3: "b"}
    tree(tmp_path, **{"labels.csv": rows.format("x", "y")})
    data = opened(tmp_path)
    assert len(data.train) == 3
    assert f"{tmp_path}/labels.csv: column split names no splits (x)" in data.notes


def test_boxes_of_several_classes_are_no_labels(tmp_path):
    """As of detection: refused, and without labels trained on; rows of one class are one label."""
    rows = "filename,class,xmin\n0.png,a,1\n0.png,a,5\n1.png,b,2\n"
    tree(tmp_path, "0.png", "1.png", **{"annotations.csv": rows})
    assert shades(opened(tmp_path)) == {1: "a", 2: "b"}
    tree(tmp_path, **{"annotations.csv": rows + "1.png,a,3\n"})
    with pytest.raises(UserError, match=r"annotations\.csv: 1\.png is b and a, where one class is wanted"):
        opened(tmp_path)
    data = opened(tmp_path, labels=False)
    assert shades(data) == {1: None, 2: None}
    assert any(line.startswith(f"{tmp_path}/annotations.csv: 1.png is b and a") for line in data.notes)


def test_columns_that_are_not_found_are_told_and_can_be_named(tmp_path):
    tree(
        tmp_path, "0.png", "1.png", **{"metadata.csv": "file_name,text,kind\n0.png,a cat,c\n1.png,a dog,d\n"}
    )
    data = opened(tmp_path)
    assert shades(data) == {1: None, 2: None}
    assert data.notes[-1] == (
        f"{tmp_path}/metadata.csv: not used: no column of classes (file_name, text, kind): --data.label_column"
    )
    assert shades(opened(tmp_path, label_column="kind")) == {1: "c", 2: "d"}
    with pytest.raises(UserError, match=r"unknown label column 'knd'; did you mean 'kind'\?"):
        opened(tmp_path, label_column="knd")


def test_a_column_that_one_table_lacks(tmp_path):
    """As Kaggle's dogs: test.csv has no labels; where no table has the column, all are named."""
    tree(tmp_path, "train/0.png", "train/1.png", "test/2.png")
    tree(tmp_path, **{"train.csv": "id,breed,text\n0,pug,x\n1,husky,y\n", "test.csv": "id\n2\n"})
    data = opened(tmp_path, label_column="breed")
    assert shades(data) == {1: "pug", 2: "husky"}
    assert f"{tmp_path}/test.csv: not used: no label column breed (id)" in data.notes
    with pytest.raises(UserError) as caught:
        opened(tmp_path, label_column="brede")
    told = "unknown label column 'brede'; did you mean 'breed'?"
    assert str(caught.value) == f"{tmp_path}/train.csv, {tmp_path}/test.csv: {told}"


def test_rows_without_a_key_have_no_label(tmp_path):
    rows = [{"file_name": "0.png"}, {"file_name": "1.png", "label": "a"}, {"label": "b"}]
    tree(tmp_path, "0.png", "1.png", "None.png", **{"metadata.jsonl": "\n".join(map(json.dumps, rows))})
    with pytest.raises(UserError, match=r"sample 0 has label None, as 1 of 2 images have none \(.*0\.png\)"):
        opened(tmp_path)
    tree(tmp_path, **{"metadata.jsonl": "\n".join(map(json.dumps, rows[1:]))})
    assert shades(opened(tmp_path)) == {2: "a"}


def test_an_infinite_label_is_no_class(tmp_path):
    rows = '{"file": "0.png", "label": Infinity}\n{"file": "1.png", "label": 1.0}\n'
    tree(tmp_path, "0.png", "1.png", **{"metadata.jsonl": rows})
    with pytest.raises(UserError, match=r"\(inf\) for sample 0 .* where one class is wanted"):
        opened(tmp_path)


def test_rows_open_no_other_file(tmp_path):
    tree(tmp_path, "secret.png", "data/0.png", "data/1.png")
    rows = [
        {"file_name": name, "label": "a"} for name in ("../secret.png", str(tmp_path / "secret.png"), "0.png")
    ]
    tree(tmp_path, **{"data/metadata.jsonl": "\n".join(map(json.dumps, rows))})
    data = opened(tmp_path / "data")
    assert shades(data) == {2: "a"}
    assert data.notes[-1].endswith("not used: 2 of 3 rows (../secret.png)")


# what is not understood


def told(root, capsys):
    """What the command line says of a folder."""
    assert call("train", "--model", "resnet8", "--data", f"folder:{root}", "--out", root.parent / "run") == 1
    return capsys.readouterr().err.replace(str(root), "ROOT")


FORMS = "PATH/CLASS/*.jpg, or PATH/train/CLASS/*.jpg and PATH/val/CLASS/*.jpg, or images alone, unlabelled"
EXPECTED = {
    "mixed": (
        ("a/0.png", "a/1.png", "b/0.png", "0.png", "notes.txt"),
        """unixkd: error: ROOT: holds images (0.png, ...) beside folders (a, ...); keep either class folders or images
  found: a/ (2 images)
  found: b/ (1 image)
  found: 1 image, .txt 1
  would do: every image in the folder of its class, or their classes in labels.csv (columns file, label)
""",
    ),
    "empty": (
        (),
        f"""unixkd: error: ROOT: no images and no class folders
  would do: {FORMS}
""",
    ),
    "archives": (
        ("train.zip", "README"),
        """unixkd: error: ROOT: no images and no class folders
  found: no suffix 1, .zip 1
  would do: folder:ROOT/train.zip
""",
    ),
    "parquet": (
        ("train-0.parquet",),
        """unixkd: error: ROOT: no images and no class folders
  found: .parquet 1
  would do: parquet:ROOT
""",
    ),
    "no train": (
        ("val/a/0.png", "test/a/0.png"),
        """unixkd: error: ROOT: no single folder to train on (test, val)
  found: test/ (1 folder)
  found: val/ (1 folder)
  would do: call one of them train
""",
    ),
    "several": (
        ("train_1/a/0.png", "train_2/a/0.png", "test/a/0.png"),
        """unixkd: error: ROOT: no single folder to train on (test, train_1, train_2)
  found: test/ (1 folder)
  found: train_1/ (1 folder)
  found: train_2/ (1 folder)
  would do: call one of them train
""",
    ),
    "pairs": (
        [f"{size}_{kind}/a/0.png" for size in ("large", "small") for kind in ("train", "test")],
        """unixkd: error: ROOT: no single folder to train on (large_test, large_train, small_test, small_train)
  found: large_test/ (1 folder)
  found: large_train/ (1 folder)
  found: small_test/ (1 folder)
  found: small_train/ (1 folder)
  would do: call one of them train
""",
    ),
    "folds": (
        ("fold1_train/a/0.png", "fold1_test/a/0.png", "fold2_test/a/0.png"),
        """unixkd: error: ROOT: no single folder to evaluate on (fold1_test, fold2_test)
  found: fold1_test/ (1 folder)
  found: fold1_train/ (1 folder)
  found: fold2_test/ (1 folder)
  would do: call one pair train and test
""",
    ),
    "deeper": (
        ("images/a/0.png", "images/b/0.png", "parts/parts.txt", "classes.txt"),
        "unixkd: error: ROOT: 2 of 4 files are no images: .txt 2: 1 of 2 classes have no images ('parts'); "
        """the others have 2 to 2 (2 images in all)
  found: images/ (2 folders)
  found: parts/ (.txt 1)
  found: .txt 1
  would do: folder:ROOT/images
""",
    ),
}


@pytest.mark.parametrize("case", EXPECTED)
def test_what_is_not_understood_is_shown_with_the_nearest_form(case, tmp_path, capsys):
    files, expected = EXPECTED[case]
    root = tmp_path / "root"
    root.mkdir()
    tree(root, *(name for name in files if name.endswith("png")))
    tree(root, **dict.fromkeys((name for name in files if not name.endswith("png")), "x"))
    assert told(root, capsys) == expected


def test_a_class_that_is_not_trained_on(tmp_path, capsys):
    root = tree(
        tmp_path / "root", "train/a/0.png", "train/b/0.png", "val/a/0.png", "val/c/0.png", "val/c/1.png"
    )
    assert told(root, capsys) == (
        "unixkd: error: ROOT/val/c: class 'c' has no folder in the training set\n"
        "  found: 2 images\n"
        "  would do: such a folder in the training set, too, or none here\n"
    )


def test_names_in_messages_are_one_line(tmp_path, capsys):
    root = tree(tmp_path / "root", "a\n\x1b[31mb/0.png", "0.png")
    lines = told(root, capsys).splitlines()
    assert lines[1] == r"  found: a\n\x1b[31mb/ (1 image)"
    assert len(lines) == 4


def test_many_folders_are_counted(tmp_path):
    root = tree(tmp_path, *(f"{i:02d}/0.png" for i in range(20)), "0.png")
    with pytest.raises(UserError) as caught:
        opened(root)
    assert caught.value.details[5:8] == ("found: 05/ (1 image)", "found: 14 more folders", "found: 1 image")


def test_the_order_of_what_loaded_before_is_what_it_was(tmp_path):
    """Runs on class folders go on: their images and fingerprints are those of the version before."""
    tree(
        tmp_path,
        *(f"{split}/{name}/{i}.png" for split, name, i in itertools.product(("train", "val"), "ab", "10")),
    )
    data = opened(tmp_path)
    assert list(shades(data)) == [2, 1, 4, 3]
    assert data.fingerprint == "549018ad7219bea59a8acf94a1ac286633eeeba085371386a478138fbaee3e02"
