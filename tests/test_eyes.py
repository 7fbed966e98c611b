"""Graded eyes: rendered when read, of a folder whose CSV file is in order or not, and of a prepared EyePACS."""

import io
from collections import Counter
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from skimage.draw import disk

from scalecov_jax.imaging import retina
from scalecov_jax.imaging.eyes import DATASET, PARTS, open_eyes, tfds_eyes
from scalecov_jax.imaging.image_set import ImageError


def photograph(blue: int, suffix: str = "jpeg") -> bytes:
    """A disc whose blue light names the eye."""
    image = np.zeros((60, 80, 3), np.uint8)
    image[disk((29.5, 39.5), 28)] = (200, 90, blue)
    file = io.BytesIO()
    Image.fromarray(image).save(file, suffix, **({"quality": 95} if suffix == "jpeg" else {}))
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Twenty patients with two eyes in EyePACS' layout, and one whose only eye lies deeper."""
    lines = ["image,level"]
    for patient in range(20):
        for number, side in enumerate(("left", "right")):
            (tmp_path / f"{patient}_{side}.jpeg").write_bytes(photograph(6 * patient + number))
            lines.append(f"{patient}_{side},{(patient + number) % 5}")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "20_Left.PNG").write_bytes(photograph(150, "png"))
    (tmp_path / "trainLabels.csv").write_text("\n".join([*lines, "more/20_Left.PNG,4", ""]))
    return tmp_path


def opened(folder, part="train", shares=(0.5, 0.2, 0.3), seed=1):
    return open_eyes(str(folder), part=part, size=24, shares=shares, seed=seed)


def whole(folder):
    """All eyes by name: grade, side, patient."""
    table = opened(folder, shares=(1.0, 0.0, 0.0)).table
    return {name: row for name, *row in table[["name", "grade", "side", "group"]].itertuples(index=False)}


def test_a_folder_is_parted_by_patient(folder):
    parts = [opened(folder, part) for part in PARTS]
    patients = [{*part.table["group"]} for part in parts]
    assert [len(one) for one in patients] == [10, 5, 6]
    assert set.union(*patients) == {str(one) for one in range(21)}
    assert sum(map(len, parts)) == 41
    assert whole(folder)["7_right.jpeg"] == [3, "right", "7"]
    assert whole(folder)["more/20_Left.PNG"] == [4, "left", "20"]
    assert opened(folder, "test").table.equals(parts[2].table)
    assert not opened(folder, "test", seed=2).table.equals(parts[2].table)
    index = int(np.flatnonzero(parts[0].table["side"] == "right")[0])
    eye = parts[0][index].image
    assert eye.shape == (24, 24, 3)
    assert abs(int(eye[12, 12, 2]) - 6 * int(parts[0][index].group) - 1) <= 4
    assert eye[12, 1].max() > 40


def test_grades_and_patients_of_tables(folder):
    rows = (folder / "trainLabels.csv").read_text().split()[1:-1]
    grades, patients = folder.parent / "grades.csv", folder.parent / "patients.csv"
    grades.write_text(
        "\n".join(["image,worst", *(f"{row[:-1]}{4 - int(row[-1])}" for row in reversed(rows))])
    )
    patients.write_text("\n".join(["image,who", *(f"{row[:-2]},{row.split('_')[0][0]}" for row in rows)]))
    opened = partial(open_eyes, str(folder), part="train", size=24, shares=(1.0, 0.0, 0.0))
    table = opened(concept=f"csv:{grades}:worst", groups=f"csv:{patients}:who").table
    before = whole(folder)
    assert len(table) == 40  # the eye without a line has no grade
    for name, grade, group in table[["name", "grade", "group"]].itertuples(index=False):
        assert (grade, group) == (4 - before[name][0], name[0])
    with pytest.raises(ValueError, match="concept is 'worst'; expected csv:PATH:COLUMN"):
        opened(concept="worst")
    with pytest.raises(ValueError, match="groups is 'who'; expected csv:PATH:COLUMN"):
        opened(groups="who")


def test_columns_of_other_names_and_patients(folder):
    text = (folder / "trainLabels.csv").read_text().splitlines()[1:]
    rows = [f"{line.split(',')[0]},{line.split(',')[1]},{'P' if line[0] < '5' else 'Q'}" for line in text]
    (folder / "trainLabels.csv").write_text("\ufefffile,grade,patient\n" + "\n".join(rows), encoding="utf-8")
    parts = [opened(folder, part, (0.5, 0.0, 0.5)) for part in ("train", "test")]
    assert sorted(one for part in parts for one in {*part.table["group"]}) == ["P", "Q"]
    with pytest.raises(ValueError, match="0 of 2 patients leaves none for validation"):
        opened(folder, "validation", (0.5, 0.0, 0.5))


@pytest.mark.parametrize(
    ("header", "line"),
    [
        ("id_code,diagnosis", "{n},{g}"),
        ("Image name,Retinopathy grade,Risk of macular edema ,,,", "{n},{g},0,,,"),
        ("image_id,adjudicated_dr_grade,adjudicated_dme,adjudicated_gradable", "{n}.jpeg,{g},0,1"),
        ("Image;Level", "{n};{g}"),
        ("image,level,Usage", "{n}, {g}.0 ,Public"),
        ("image,level", "C:\\eyes\\{n}.jpeg,{g}"),
    ],
)  # APTOS, IDRiD, Messidor-2, a semicolon, pandas' floats, Windows
def test_tables_of_public_sets(folder, header, line):
    (folder / "more" / "20_Left.PNG").unlink()
    expected = {name: grade for name, (grade, *_) in whole(folder).items()}
    rows = [line.format(n=name.removesuffix(".jpeg"), g=grade) for name, grade in expected.items()]
    (folder / "trainLabels.csv").write_text("\n".join([header, *rows]))
    assert {name: grade for name, (grade, *_) in whole(folder).items()} == expected


def test_ungradable_eyes_and_lines_of_others_are_left_out(folder):
    table = folder / "trainLabels.csv"
    text = table.read_text().replace("\n3_left,3\n", "\n3_left,\n").replace("\n4_left,4\n", "\n4_left,-1\n")
    table.write_text(text + "99_left,1\n98_right,0\n")
    (folder / "new.jpg").write_bytes(photograph(0))
    parts = [opened(folder, part, (0.6, 0.2, 0.2)) for part in PARTS]
    assert sum(map(len, parts)) == 39
    left = [(one.name, one.reason) for part in parts for one in part.skipped]
    assert sorted(left) == [
        ("3_left.jpeg", "no grade"),
        ("4_left.jpeg", "no grade"),
        ("98_right", "no such image file"),
        ("99_left", "no such image file"),
        ("new.jpg", "no grade"),
    ]


def test_all_mistakes_of_a_folder_at_once(folder):
    table = folder / "trainLabels.csv"
    text = table.read_text()
    table.write_text(text.replace("\n4_left,4\n", "\n4_left,5\n").replace("\n5_left,0\n", "\n5_left,mild\n"))
    with pytest.raises(ValueError, match=r"4_left\.jpeg: grade '5'; 5_left\.jpeg: grade 'mild'"):
        opened(folder)
    table.write_text(text + "7_left.jpeg,2\n")
    (folder / "more" / "6_left.png").write_bytes(photograph(0, "png"))
    with pytest.raises(
        ValueError,
        match=r"line 14 names 6_left\.jpeg and more/6_left\.png; 7_left\.jpeg is named in lines 16, 43",
    ):
        opened(folder)


@pytest.mark.parametrize(("left", "right"), [("OS", "OD"), ("LEFT", "RIGHT"), ("os_1", "od_1")])
def test_both_eyes_are_of_one_patient(tmp_path, left, right):
    names = [f"{patient}_{side}" for patient in range(9) for side in (left, right)]
    for name in names:
        (tmp_path / f"{name}.jpeg").write_bytes(photograph(0))
    (tmp_path / "labels.CSV").write_text("image,level\n" + "".join(f"{name},1\n" for name in names))
    eyes = whole(tmp_path)
    assert {patient for *_, patient in eyes.values()} == {str(patient) for patient in range(9)}
    assert [side for _, side, _ in eyes.values()] == [
        ("left", "right")["D" in n or "RIGHT" in n or "od" in n] for n in eyes
    ]


def test_folders_that_are_none(folder, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    (folder / "other.csv").write_text("a,b\n")
    assert len(whole(folder)) == 41
    for path, problem in ((empty, "no CSV file"), (empty / "x", "no such folder")):
        with pytest.raises(ValueError, match=problem):
            opened(path)
    (folder / "other.csv").write_text("image,grade\n0_left,1\n")
    with pytest.raises(
        ValueError, match=r"2 of 2 CSV files .*trainLabels\.csv: image, level.*index\.csv to choose"
    ):
        opened(folder)
    (folder / "trainLabels.csv").unlink()
    (folder / "other.csv").write_text("image,level\n")
    with pytest.raises(ValueError, match="names none of the 41 images"):
        opened(folder)


def test_shares_and_counts_that_are_none(folder):
    with pytest.raises(ValueError, match=r"\(0\.5, 0\.5, 0\.5\); expected parts of 1"):
        opened(folder, shares=(0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match="0 rendered eyes for test"):
        open_eyes("retina", part="test", size=24)


def test_what_shows_no_coloured_disc_is_named_when_it_is_read(folder):
    Image.new("RGB", (80, 60), (90, 60, 40)).save(folder / "0_left.jpeg")
    Image.open(folder / "0_right.jpeg").convert("L").save(folder / "0_right.jpeg")
    (folder / "1_left.jpeg").write_bytes(b"no picture")
    eyes = open_eyes(str(folder), part="train", size=24, shares=(1.0, 0.0, 0.0))
    assert len(eyes) == 41
    problems = []
    for name in ("0_left.jpeg", "0_right.jpeg", "1_left.jpeg"):
        with pytest.raises(ImageError) as error:
            eyes[[*eyes.table["name"]].index(name)]
        assert error.value.name == name
        problems.append(error.value.problem)
    assert "no visible disc" in problems[0]
    assert "grey image" in problems[1]
    assert "not an image" in problems[2]


def test_drive_has_no_grades(shared):
    with pytest.raises(ValueError, match="no image has a grade"):
        open_eyes(str(shared / "data" / "fundus"), part="train", size=24)


def test_rendered_eyes_are_drawn_when_read(monkeypatch):
    """Each has a key of its own, in whatever part."""
    drawn = []

    def render(key, grade, size, left):
        drawn.append(str(key))
        return jnp.full((size, size, 3), 2 * grade + left, jnp.uint8), None

    monkeypatch.setattr(retina, "render", render)
    parts = [open_eyes("retina", part=part, size=4, count=41, seed=3) for part in PARTS]
    assert not drawn
    for part in parts:
        grades, patients = part.column("grade"), part.column("group")
        assert [int(part[index].image[0, 0, 0]) for index in range(41)] == [
            *(2 * grades + (part.column("side") == "left"))
        ]
        assert Counter(patients).most_common()[-1][1] == 1
        assert np.abs(np.diff(grades[:40].reshape(20, 2))).max() == 1
        assert {*grades} == {0, 1, 2, 3, 4}
    assert len({*drawn}) == 123
    assert not {*parts[0].table["group"]} & {*parts[1].table["group"]}
    assert len({tuple(part.table["grade"]) for part in parts}) == 3
    longer = open_eyes("retina", part="test", size=4, count=43, seed=4)
    assert [*longer.table["grade"]][:41] != [*parts[2].table["grade"]]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A tiny EyePACS in array_record, its records as those of diabetic_retinopathy_detection; the last test eye has no grade."""
    import tensorflow_datasets as tfds

    class TinyEyes(tfds.core.GeneratorBasedBuilder):
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="btgraham-300", version="3.0.0")]  # noqa: RUF012

        def _info(self):
            features = {
                "name": tfds.features.Text(),
                "image": tfds.features.Image(),
                "label": tfds.features.ClassLabel(num_classes=5),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(0, 6), "test": self._generate_examples(6, 9)}

        def _generate_examples(self, first, last):
            for number in range(first, last):
                name = f"{number // 2}_{('left', 'right')[number % 2]}"
                label = -1 if number == 8 else number % 5
                yield name, {"name": name, "image": photograph(20 * number), "label": label}

    data_dir = tmp_path_factory.mktemp("tfds")
    TinyEyes(data_dir=data_dir, file_format="array_record").download_and_prepare()
    (data_dir / "tiny_eyes").rename(data_dir / DATASET)
    return data_dir


def test_prepared_eyepacs(prepared):
    train = open_eyes(f"tfds:{prepared}", part="train", size=24)
    assert sorted(train.table["name"]) == [f"{one}_{side}" for one in range(3) for side in ("left", "right")]
    index = [*train.table["name"]].index("2_right")
    assert [*train.table.iloc[index][["grade", "group", "side"]]] == [0, "2", "right"]
    assert abs(int(train[index].image[12, 12, 2]) - 100) <= 3
    test = tfds_eyes(prepared / DATASET / "btgraham-300", "test")
    assert len(test) == 2
    assert [skip.reason for skip in test.skipped] == ["no grade"]
    assert test.skipped[0].name == "4_left"


def test_eyepacs_that_is_not_prepared_so(prepared, tmp_path):
    with pytest.raises(ValueError, match=r"no prepared dataset.*download_and_prepare"):
        open_eyes(f"tfds:{tmp_path}", part="train", size=24)
    with pytest.raises(ValueError, match=r"'validation'.*splits: train, test"):
        open_eyes(f"tfds:{prepared}", part="validation", size=24)
    for config in ("250K", "original"):
        (tmp_path / DATASET / config / "3.0.0").mkdir(parents=True)
        (tmp_path / DATASET / config / "3.0.0" / "dataset_info.json").touch()
    with pytest.raises(ValueError, match=rf"2 configurations \(250K, original\).*{DATASET}/250K"):
        open_eyes(f"tfds:{tmp_path}", part="train", size=24)
