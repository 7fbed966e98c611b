"""Graded eyes: rendered when read, of a folder whose CSV file is in order or not, and of a prepared EyePACS."""

import io
from collections import Counter

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from skimage.draw import disk

from scalecov_jax.images import retina
from scalecov_jax.images.example import ImageError
from scalecov_jax.images.eyes import DATASET, PARTS, open_eyes, tfds_eyes


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


def test_a_folder_is_parted_by_patient(folder):
    parts = [open_eyes(str(folder), part=part, size=24, shares=(0.5, 0.2, 0.3), seed=1) for part in PARTS]
    patients = [set(part.patients) for part in parts]
    assert [len(one) for one in patients] == [10, 5, 6]
    assert set.union(*patients) == {str(one) for one in range(21)}
    assert sum(map(len, patients)) == 21
    eyes = {
        name: fact for part in parts for name, *fact in zip(part.names, part.grades, part.sides, strict=True)
    }
    assert len(eyes) == 41
    assert eyes["7_right.jpeg"] == [3, "right"]
    assert eyes["more/20_Left.PNG"] == [4, "left"]
    again = open_eyes(str(folder), part="test", size=24, shares=(0.5, 0.2, 0.3), seed=1)
    assert again.names == parts[2].names
    assert open_eyes(str(folder), part="test", size=24, seed=2, shares=(0.5, 0.2, 0.3)).names != again.names
    index = parts[0].names.index(next(one for one in parts[0].names if one.endswith("_right.jpeg")))
    eye = parts[0].read(index)
    assert eye.shape == (24, 24, 3)
    assert abs(int(eye[12, 12, 2]) - 6 * int(parts[0].patients[index]) - 1) <= 4
    assert eye[12, 1].max() > 40


def test_columns_of_other_names_and_patients(folder):
    text = (folder / "trainLabels.csv").read_text().splitlines()[1:]
    rows = [f"{line.split(',')[0]},{line.split(',')[1]},{'P' if line[0] < '5' else 'Q'}" for line in text]
    (folder / "trainLabels.csv").write_text("﻿file,grade,patient\n" + "\n".join(rows))
    parts = [open_eyes(str(folder), part=part, size=24, shares=(0.5, 0.0, 0.5)) for part in ("train", "test")]
    assert sorted(one for part in parts for one in {*part.patients}) == ["P", "Q"]
    with pytest.raises(ValueError, match="0 of 2 patients leaves none for validation"):
        open_eyes(str(folder), part="validation", size=24, shares=(0.5, 0.0, 0.5))


def test_all_mistakes_of_a_folder_at_once(folder):
    table = folder / "trainLabels.csv"
    text = table.read_text()
    text = (
        text.replace("\n3_left,3\n", "\n3_left,\n")
        .replace("\n4_left,4\n", "\n4_left,5\n")
        .replace("\n5_left,0\n", "\n5_left,mild\n")
    )
    (folder / "more" / "6_left.png").write_bytes(photograph(0, "png"))
    table.write_text(text + "7_left.jpeg,2\n99_left,1\n../8_left,1\n")
    (folder / "new.jpg").write_bytes(photograph(0))
    with pytest.raises(ValueError, match="no grade") as error:
        open_eyes(str(folder), part="train", size=24)
    for problem in (
        "trainLabels.csv: no grade (1): line 8: 3_left; ",
        "a grade other than 0 to 4 (2): line 10: 4_left '5', line 12: 5_left 'mild'; ",
        "several files of the name (1): line 14: 6_left; ",
        "listed twice (1): line 43: 7_left.jpeg; ",
        "no such file (2): line 44: 99_left, line 45: ../8_left; ",
        "photograph without a line (1): new.jpg.",
    ):
        assert problem in str(error.value)


def test_folders_that_are_none(folder, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    for path, problem in ((empty, "0 CSV files"), (empty / "x", "no such folder"), (folder, "2 CSV files")):
        (folder / "other.csv").write_text("a,b\n")
        with pytest.raises(ValueError, match=f"{problem}; expected photographs and one CSV file"):
            open_eyes(str(path), part="train", size=24)
    (folder / "trainLabels.csv").unlink()
    with pytest.raises(ValueError, match="the columns are a, b; expected image and level"):
        open_eyes(str(folder), part="train", size=24)
    (folder / "other.csv").write_bytes("image,level\nä,1\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"other\.csv: not UTF-8"):
        open_eyes(str(folder), part="train", size=24)
    (folder / "other.csv").write_text("image,level\n")
    with pytest.raises(ValueError, match=r"photograph without a line \(41\).*, and 36 more; no lines"):
        open_eyes(str(folder), part="train", size=24)


def test_shares_and_counts_that_are_none(folder):
    with pytest.raises(ValueError, match=r"\(0\.5, 0\.5, 0\.5\); expected parts of 1"):
        open_eyes(str(folder), part="train", size=24, shares=(0.5, 0.5, 0.5))
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
            eyes.read(eyes.names.index(name))
        assert error.value.name == name
        problems.append(error.value.problem)
    assert "no visible disc" in problems[0]
    assert "grey image" in problems[1]
    assert "not an image" in problems[2]


def test_drive_has_no_grades(shared):
    with pytest.raises(ValueError, match=r"no grade \(8\): line 2: drive/21_training\.tif"):
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
        values = [int(part.read(index)[0, 0, 0]) for index in range(41)]
        sides = [side == "left" for side in part.sides]
        assert values == [2 * grade + left for grade, left in zip(part.grades, sides, strict=True)]
        assert Counter(part.patients).most_common()[-1][1] == 1
        pairs = np.reshape(part.grades[:40], (20, 2))
        assert np.abs(np.diff(pairs)).max() == 1
        assert set(part.grades) == {0, 1, 2, 3, 4}
    assert len({*drawn}) == 123
    assert not {*parts[0].patients} & {*parts[1].patients}
    assert len({part.grades for part in parts}) == 3
    longer = open_eyes("retina", part="test", size=4, count=43, seed=4)
    assert longer.grades[:41] != parts[2].grades


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
    assert sorted(train.names) == [f"{one}_{side}" for one in range(3) for side in ("left", "right")]
    index = train.names.index("2_right")
    assert (train.grades[index], train.patients[index], train.sides[index]) == (0, "2", "right")
    assert abs(int(train.read(index)[12, 12, 2]) - 100) <= 3
    test = tfds_eyes(prepared / DATASET / "btgraham-300", "test", 24)
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
