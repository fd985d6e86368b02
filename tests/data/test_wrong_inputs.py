"""Wrong data of one's own: each has a clear error that names the remedy, and nothing is lost."""

import json
import struct
import zlib

import numpy as np
import pyarrow as pa
import pytest
from own_data import encoded, pictures, rows_of, write_arrow, write_csv, write_folder
from PIL import Image
from pyarrow import parquet
from safetensors.numpy import save_file

from contrastive_jax.data import from_arrays, load

CASES = []


def case(words, **options):
    """Registers a function that writes wrong data and returns what `load` is given."""

    def register(write):
        CASES.append(pytest.param(write, words, options, id=write.__name__))
        return write

    return register


def _photos(where):
    return write_folder(where / "photos", pictures())


def _csv(where, text):
    (where / "table.csv").write_text(text)
    return where / "table.csv"


def _npz(where, **arrays):
    np.savez(where / "x.npz", **arrays)
    return where / "x.npz"


VECTORS = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
CLASSES = np.repeat([0, 1], 20)


# Folders.


@case(r"photos is empty: .* put the images of each class into a folder of its own")
def empty_folder(where):
    (where / "photos").mkdir()
    return where / "photos"


@case(r"has 2 images and no class folders, so that their classes are not given")
def images_without_class_folders(where):
    folder = where / "photos"
    folder.mkdir()
    for k in range(2):
        (folder / f"{k}.png").write_bytes(encoded(pictures()["cat"][k]))
    return folder


@case(r"test has 8 images and no class folders")
def splits_without_class_folders(where):
    return write_folder(where / "photos", pictures(classes=("train", "test")))


@case(r"0.png lies in a folder inside of the class folder .*animals, and its class may be animals")
def nested_class_folders(where):
    return write_folder(where / "photos" / "animals", pictures()).parent


@case(r"has no images \(.png, .*\) in class folders")
def class_folders_without_images(where):
    (where / "photos" / "cat").mkdir(parents=True)
    (where / "photos" / "cat" / "notes.txt").touch()
    return where / "photos"


@case(r"has no class folders; if table.csv is the data, name that file")
def folder_of_a_table(where):
    return write_csv(where / "table.csv", {}).parent


@case(r"has the split train beside cat, which is no split; move cat elsewhere")
def splits_beside_classes(where):
    write_folder(where / "photos" / "train", pictures())
    return write_folder(where / "photos", pictures(classes=["cat"]))


@case(r"two folders of one split among train, val, validation")
def two_folders_of_one_split(where):
    for split in ("train", "val", "validation"):
        write_folder(where / "photos" / split, pictures())
    return where / "photos"


@case(r"has no train split, and only test; name the split to train on train")
def no_train_split(where):
    write_folder(where / "photos" / "test", pictures())
    return where / "photos"


@case(r"--split classes has no effect on .*, which has splits of its own", split_by="classes")
def splits_of_given_splits(where):
    for split in ("train", "test"):
        write_folder(where / "photos" / split, pictures())
    return where / "photos"


@case(r"from 3 classes of 3 examples: by classes, .*; by examples, .*; add examples")
def too_few_examples(where):
    return write_folder(where / "photos", pictures(3))


@case(r"by classes, train, .* need two classes .* \(--split examples\)", split_by="classes")
def too_few_classes(where):
    return _photos(where)


@case(r"no validation and test can be split off from 1 class of 8 examples: by classes")
def one_class(where):
    return write_folder(where / "photos", pictures(classes=["cat"]))


@case(r"--similar_label has no effect on .*photos, which holds classes", similar_label=1)
def label_of_pairs_without_pairs(where):
    return _photos(where)


# Images.


@case(
    r"1 of 24 images of .* can not be read: cat/0.png \(it is empty\); mend or remove them, or le"
)
def empty_image(where):
    (_photos(where) / "cat" / "0.png").write_bytes(b"")
    return where / "photos"


@case(r"2 of 24 images of .*: cat/0.png \(.*truncated.*\), dog/1.png \(it is no image\)")
def truncated_image_and_a_text(where):
    path = _photos(where) / "cat" / "0.png"
    path.write_bytes(encoded(np.random.default_rng(0).integers(0, 256, (99, 99), np.uint8))[:999])
    (where / "photos" / "dog" / "1.png").write_text("no image")
    return where / "photos"


@case(r"cat/0.png \(.*checksum|cat/0.png \(.*broken")
def damaged_image(where):
    path = _photos(where) / "cat" / "0.png"
    content = path.read_bytes()
    path.write_bytes(content[:45] + b"\xff" + content[46:])
    return where / "photos"


def _bomb(where, width, height):
    """Writes the header of a PNG of that many pixels, and none of them."""

    def chunk(name, content):
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    content = chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    path = _photos(where) / "cat" / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + content)
    return where / "photos"


@case(r"cat/bomb.png \(its 15000 x 9000 pixels are more than Pillow's limit of 89,478,485")
def decompression_bomb_that_pillow_warns_of(where):
    return _bomb(where, 15000, 9000)


@case(r"cat/bomb.png \(Image size .* could be decompression bomb DOS attack")
def decompression_bomb_that_pillow_refuses(where):
    return _bomb(where, 20000, 9000)


@case(r"cat/0.png \(there is no such file\)")
def broken_link(where):
    path = _photos(where) / "cat" / "0.png"
    path.unlink()
    path.symlink_to(where / "absent.png")
    return where / "photos"


@case(r"cat/f.tiff \(its pixels are floats")
def image_of_floats(where):
    image = Image.fromarray(np.zeros((6, 6), np.float32))
    (_photos(where) / "cat" / "f.tiff").write_bytes(encoded(image, "tiff"))
    return where / "photos"


@case(r"4 of 4 images .*; write paths relative to the folder of the table, with / between")
def paths_of_another_system(where):
    write_folder(where, pictures())
    rows = [f"{name}\\{k}.png,{name}" for name in ("cat", "dog") for k in range(2)]
    return _csv(where, "path,class\n" + "\n".join(rows))


@case(r"24 of 24 images of .* none is left to train on", on_bad_input="skip")
def no_image_is_one(where):
    for path in _photos(where).rglob("*.png"):
        path.write_text("x")
    return where / "photos"


@case(r"24 images of 10000000 x .* GiB .* --image_size", image_size=10**7)
def images_beyond_the_memory(where):
    return _photos(where)


@case(r"--image_size must be at least 1 pixel, got 0", image_size=0)
def images_without_pixels(where):
    return _photos(where)


# Tables.


@case(r"table.csv has no rows below its header")
def table_without_rows(where):
    return _csv(where, "path,class\n")


@case(r"has no rows below its header")
def empty_table(where):
    return _csv(where, "")


@case(r"has no column class: its columns are path, kind; expected a column class and one of path")
def table_without_classes(where):
    return _csv(where, "path,kind\na.png,cat\n")


@case(r"has no column path, image or vector: its columns are file, class")
def table_without_paths(where):
    return _csv(where, "file,class\na.png,cat\n")


@case(r"has two columns 'class'; rename one of them")
def columns_of_one_name(where):
    return _csv(where, "path,class,Class\na.png,cat,dog\n")


@case(r"line 3 of .*table.csv has 3 fields, and its header 2; put fields that contain ','")
def ragged_table(where):
    return _csv(where, "path,class\na.png,cat\nb.png,cat,dog\n")


@case(r"line \d of .* can not be read: unexpected end of data; close its quotes")
def open_quotes(where):
    return _csv(where, 'path,class\n"a.png,cat\nb.png,dog\n')


@case(r"line 2 of .*table.csv is not UTF-8; save the table as CSV in UTF-8")
def table_in_latin_1(where):
    (where / "table.csv").write_bytes("path,class\nä.png,cat\n".encode("latin-1"))
    return where / "table.csv"


@case(r"24 of 24 images .*: cat/\d.png \(there is no such file\)|24 of 24 images of")
def paths_relative_to_another_folder(where):
    lines = [f"{path},{label}" for path, label, _ in rows_of(pictures())]
    return _csv(where, "path,class\n" + "\n".join(lines))


@case(r"row 1 of .* has nothing in column path, expected a path")
def missing_path(where):
    return _csv(where, "path,class\na.png,cat\n,dog\n")


@case(r"rows with holdout, nothing as split, expected train, validation or test in every row")
def unknown_split(where):
    path = write_csv(where / "table.csv", pictures(), "{path},{label},train", "path,class,split")
    lines = path.read_text().splitlines()
    lines[3:5] = [lines[3].replace("train", "holdout"), lines[4].replace("train", "")]
    path.write_text("\n".join(lines))
    return path


@case(r"has no example with a class: all 2 are empty or -1")
def hidden_classes(where):
    return _csv(where, "path,class\na.png,\nb.png,\n")


@case(r"row 0 of x of .* has the class 0.5, expected an integer, a string or a boolean|class 0.5")
def classes_that_are_fractions(where):
    return _npz(where, embeddings=VECTORS, classes=CLASSES + 0.5)


@case(r"the role 'probe', expected query, gallery or nothing")
def unknown_role(where):
    return write_csv(where / "table.csv", pictures(), "{path},{label},probe", "path,class,role")


@case(r"table.parquet can not be read as Parquet: .*; write it anew")
def damaged_parquet(where):
    (where / "table.parquet").write_bytes(b"PAR1nonsense")
    return where / "table.parquet"


@case(r"table.parquet has no rows")
def parquet_without_rows(where):
    table = pa.table({"path": pa.array([], pa.string()), "class": pa.array([], pa.string())})
    parquet.write_table(table, where / "table.parquet")
    return where / "table.parquet"


@case(r"row 0 of .* has a int in column image, expected a path, the bytes of an image, or a vector")
def images_that_are_numbers(where):
    parquet.write_table(pa.table({"image": [1, 2], "class": ["a", "b"]}), where / "t.parquet")
    return where / "t.parquet"


# Vectors.


@case(r"column vector of .* has vectors of 2 entries, and of 3 in row 1; all must be of one length")
def ragged_vectors(where):
    table = pa.table({"vector": [[1.0, 2.0], [1.0, 2.0, 3.0]], "class": ["a", "b"]})
    parquet.write_table(table, where / "t.parquet")
    return where / "t.parquet"


@case(r"column vector of .* has no vector in row 1; leave that row out")
def missing_vector(where):
    table = pa.table({"vector": [[1.0, 2.0], None], "class": ["a", "b"]})
    parquet.write_table(table, where / "t.parquet")
    return where / "t.parquet"


@case(r"column vector of .* has lists of list values, expected vectors of numbers")
def vectors_of_vectors(where):
    table = pa.table({"vector": [[[1.0]], [[2.0]]], "class": ["a", "b"]})
    parquet.write_table(table, where / "t.parquet")
    return where / "t.parquet"


@case(r"column vector of .* has '\[1.0 2.0\]' in row 0, expected a vector such as \[0.5, 1.25\]")
def vectors_as_numpy_prints_them(where):
    return _csv(where, "vector,class\n[1.0 2.0],a\n[1.0 3.0],b\n")


@case(
    r"2 of 40 vectors of .* are not finite in float32, .* are not: row 3, row 7; mend or remove "
    "them, or leave"
)
def vectors_that_are_not_finite(where):
    vectors = VECTORS.astype(np.float64)
    vectors[3, 1], vectors[7, 0] = np.nan, 1e300
    return _npz(where, embeddings=vectors, classes=CLASSES)


@case(r"x.npz has 0 of the arrays classes and labels, expected one; its arrays are embeddings")
def vectors_without_classes(where):
    return _npz(where, embeddings=VECTORS)


@case(r"has 2 of the arrays embeddings and vectors, expected one")
def two_arrays_of_vectors(where):
    return _npz(where, embeddings=VECTORS, vectors=VECTORS, labels=CLASSES)


@case(r"has 40 vectors, and an array of shape \[39\] as class")
def fewer_classes_than_vectors(where):
    return _npz(where, embeddings=VECTORS, classes=CLASSES[1:])


@case(r"x.npz can not be read: ValueError: Object arrays cannot be loaded .* numpy.savez")
def classes_that_are_python_objects(where):
    return _npz(where, embeddings=VECTORS, classes=np.array(["a"] * 40, object))


@case(r"the vectors of .* have the shape \[40, 0\], expected \[N, D\]")
def vectors_without_entries(where):
    return _npz(where, embeddings=VECTORS[:, :0], classes=CLASSES)


@case(r"--image_size has no effect on .*x.npz, which holds vectors: leave it out", image_size=8)
def size_of_vectors(where):
    return _npz(where, embeddings=VECTORS, classes=CLASSES)


@case(r"x.npy has no labels beside it; save the class of each row as x_labels.npy, or as one of")
def vectors_without_labels_beside(where):
    np.save(where / "x.npy", VECTORS)
    return where / "x.npy"


@case(r"x.safetensors can not be read as safetensors: .*; write it anew")
def damaged_safetensors(where):
    save_file({"embeddings": VECTORS, "classes": CLASSES}, where / "x.safetensors")
    (where / "x.safetensors").write_bytes((where / "x.safetensors").read_bytes()[:100])
    return where / "x.safetensors"


# Pairs.


def _pairs(where, text):
    write_folder(where, pictures(2, classes=["i"]))
    return _csv(where, text)


@case(r"both meanings of 1 are common: say which label means a positive pair with --similar_label")
def pairs_whose_label_is_not_explained(where):
    return _pairs(where, "left,right,label\ni/0.png,i/1.png,1\n")


@case(r"has no column right: its columns are left, similar")
def pairs_without_right(where):
    return _pairs(where, "left,similar\ni/0.png,1\n")


@case(r"has no labels of its pairs: its columns are left, right; name one similar")
def pairs_without_labels(where):
    return _pairs(where, "left,right\ni/0.png,i/1.png\n")


@case(r"row 0 of .* has '2' as similar, expected 0, 1, true or false")
def label_of_a_pair_that_is_two(where):
    return _pairs(where, "left,right,similar\ni/0.png,i/1.png,2\n")


@case(r"has two columns of labels, similar and different; keep one")
def two_columns_of_labels(where):
    return _pairs(where, "left,right,similar,different\ni/0.png,i/1.png,1,0\n")


@case(r"--similar_label has no effect on .*, whose column similar says", similar_label=1)
def label_of_pairs_given_twice(where):
    return _pairs(where, "left,right,similar\ni/0.png,i/1.png,1\n")


@case(r"row 0 of .* has the weight '-1', expected a finite number of at least 0")
def negative_weight(where):
    return _pairs(where, "left,right,similar,weight\ni/0.png,i/1.png,1,-1\n")


@case(r"has no negative pair among 1: training and evaluation compare both")
def pairs_of_one_label(where):
    return _pairs(where, "left,right,similar\ni/0.png,i/1.png,1\n")


@case(r"table.csv has 3 pairs, too few for a (test|validation) split: add pairs, or name the split")
def too_few_pairs(where):
    write_folder(where, pictures(4, classes=["i"]))
    rows = ("i/0.png,i/1.png,1", "i/1.png,i/2.png,0", "i/2.png,i/3.png,1")
    return _csv(where, "\n".join(("left,right,similar", *rows)) + "\n")


@case(r"1 of 1 pairs name a file that does not exist in .*: i/0.png and i/9.png; mend their paths$")
def pairs_of_missing_files(where):
    return _pairs(where, "left,right,similar\ni/0.png,i/9.png,1\n")


@case(r"2 of 2 pairs contradict each other in .*; decide on one label$", on_bad_input="skip")
def pairs_that_all_contradict(where):
    text = "left,right,similar\ni/0.png,i/1.png,1\ni/1.png,i/0.png,0\n"
    return _pairs(where, text)


# Hugging Face, and other files.


@case(r"state.json can not be read: JSONDecodeError: .*; save it anew with save_to_disk")
def damaged_state(where):
    write_arrow(where / "saved", pa.table({"a": [1]}), {})
    (where / "saved" / "state.json").write_text("{")
    return where / "saved"


@case(r"data-00000-of-00001.arrow can not be read: .*; save it anew with save_to_disk")
def damaged_arrow_file(where):
    write_arrow(where / "saved", pa.table({"a": [1]}), {})
    (where / "saved" / "data-00000-of-00001.arrow").write_bytes(b"\xff\xff\xff\xff")
    return where / "saved"


@case(
    r"has 2 columns that may be the image, expected one, or one called 'image'; its columns are a"
)
def two_columns_of_images(where):
    row = [{"bytes": encoded(pictures()["cat"][0]), "path": None}]
    features = {name: {"_type": "Image"} for name in "ab"}
    write_arrow(where / "saved", pa.table({"a": row, "b": row}), features)
    return where / "saved"


@case(r"has the class 2 in class, which names 2 classes")
def class_beyond_the_names(where):
    table = pa.table({"vector": [[1.0], [2.0]], "class": [0, 2]})
    features = {"class": {"_type": "ClassLabel", "names": ["a", "b"]}}
    schema = {"huggingface": json.dumps({"info": {"features": features}})}
    parquet.write_table(table.replace_schema_metadata(schema), where / "t.parquet")
    return where / "t.parquet"


@case(r"0.png is a single image; expected a folder of class folders of images")
def single_image(where):
    return _photos(where) / "cat" / "0.png"


@case(r"x.json is of no form that is read here; expected .* \.csv, \.tsv, \.parquet")
def other_file(where):
    (where / "x.json").write_text("{}")
    return where / "x.json"


@case(
    r"data must be a name, a path or a Dataset of Hugging Face, got a ndarray; .*from_arrays takes"
)
def array_in_place_of_a_path(where):
    return VECTORS


@pytest.mark.parametrize(("write", "words", "options"), CASES)
def test_wrong_data_is_refused_and_nothing_is_lost(write, words, options, tmp_path):
    source = write(tmp_path)
    before = _contents(tmp_path)
    with pytest.raises(ValueError, match=words) as error:
        load(source, **options)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 700
    assert _contents(tmp_path) == before


def _contents(folder):
    return {
        path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))
    }


def test_there_are_many():
    assert len(CASES) >= 60


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((VECTORS[:, None, None, None], CLASSES), r"images must be \[N, H, W\], .* \[40, 1, 1, 1"),
        ((VECTORS[:0], CLASSES[:0]), r"got \[0, 3\]"),
        ((VECTORS, CLASSES[1:]), r"classes must have one entry for each of 40 images, .* \[39\]"),
        (
            (np.zeros((6, 8, 8, 1), np.int64), CLASSES[:6]),
            r"are int64, expected uint8 from 0 to 255; give images\.astype\('uint8'\)$",
        ),
        ((VECTORS[:, None], CLASSES), r"are float32, expected uint8 .* scale images in \[0, 1\]"),
        ((np.zeros((40, 3, 8, 8), np.uint8), CLASSES), r"transpose\(0, 2, 3, 1\)"),
        ((VECTORS * 1e30, CLASSES), r"40 of 40 vectors of .*, or their lengths are not: row 0,"),
        ((VECTORS * 0, CLASSES), "vectors of arrays are all the same"),
        ((VECTORS.astype(str), CLASSES), r"are <U\d+, expected numbers"),
        ((VECTORS, [[1]] * 40), r"got the shape \[40, 1\]"),
    ],
)
def test_wrong_arrays_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        from_arrays(*arguments)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"split_by": "class"}, "split_by must be classes or examples, got 'class'"),
        ({"on_bad_input": "drop"}, "on_bad_input must be error or skip, got 'drop'"),
        ({"similar_label": 2}, "similar_label must be 0 or 1, got 2"),
        ({"validation_fraction": 0.5}, r"validation_fraction must be in \(0, 1/4\]"),
        ({"seed": -1}, "seed must be"),
        ({"tfds_dir": "."}, "have no effect on"),
    ],
)
def test_wrong_arguments_are_refused(options, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        load(tmp_path, **options)


def test_arguments_of_ones_own_data_are_not_of_named_sets():
    with pytest.raises(ValueError, match="have no effect on the data set digits: leave them out"):
        load("digits", on_bad_input="skip")
    with pytest.raises(ValueError, match="split_by must be classes or examples, got 'class'"):
        load("digits", split_by="class")
