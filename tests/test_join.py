"""Joined sets: nothing copied, channels chosen, the source kept to the report; the paper's prostate."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mednca.cases import find_cases
from mednca.cli import main
from mednca.dataset import load_scan, load_scans
from mednca.doctor import audit
from mednca.errors import InputError
from mednca.io import read_case, read_label
from mednca.join import join
from mednca.report import Report
from tests.prostate import organ, small_settings, write_nci_isbi, write_task05
from tests.small import voxels, write_data, write_nifti


def refused(action: Callable[[], object], *words: str) -> None:
    with pytest.raises(InputError) as caught:
        action()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), str(caught.value)


@pytest.fixture
def sets(tmp_path: Path) -> tuple[Path, Path]:
    """MSD Task05 and NCI-ISBI 2013 in small."""
    return write_task05(tmp_path / "Task05_Prostate"), write_nci_isbi(tmp_path / "NCI-ISBI-2013")


def test_task05_is_read_as_it_is(sets: tuple[Path, Path]) -> None:
    found = find_cases(sets[0], require_labels=True)
    assert found.channels == ("T2", "ADC") and found.labels == {1: "PZ", 2: "TZ"}
    scan = load_scan(found.cases[0])
    assert scan.image.channels == 2 and scan.label.shape == scan.image.shape == (32, 32, 5)
    np.testing.assert_array_equal(scan.image.data[0], organ(0, (32, 32, 5))[0])


def test_nci_isbi_is_read_as_it_is(sets: tuple[Path, Path]) -> None:
    found = find_cases(sets[1], require_labels=True)
    assert [case.id for case in found.cases] == [f"Prostate3T-01-000{n}" for n in (1, 2, 3)]
    assert found.layout == "folders" and not found.strays
    for number, case in enumerate(found.cases):  # the second label is stored upside down
        scan = load_scan(case)
        image, label = organ(100 + number, (40, 40, 4))
        np.testing.assert_array_equal(scan.image.data[0], image)
        np.testing.assert_array_equal(scan.label.data[0], label)
    assert not [finding for finding in audit(found).findings if finding.severity == "error"]


def test_sets_of_other_channels_do_not_mix_unless_chosen(sets: tuple[Path, Path], tmp_path: Path) -> None:
    mixed = join(sets, tmp_path / "mixed")
    refused(lambda: load_scans(mixed.cases), "channel(s)", "mednca data join --channels")
    told = [finding for finding in audit(mixed).findings if finding.check == "channels differ"]
    assert [finding.case for finding in told] in (
        [f"Prostate3T-01-000{n}" for n in (1, 2, 3)],
        [f"prostate_0{n}" for n in (0, 1, 2)],
    )
    wrong = join(sets, tmp_path / "wrong", channels=(1,))
    refused(lambda: load_scans(wrong.cases), "channel 1 was asked for", "1 channel(s)")
    joined = join(sets, tmp_path / "joined", channels=(0,))
    scans = load_scans(joined.cases)
    assert {scan.image.channels for scan in scans} == {1}
    np.testing.assert_array_equal(scans[3].image.data[0], organ(0, (32, 32, 5))[0])  # T2, not ADC
    assert not [finding for finding in audit(joined).findings if finding.severity == "error"]


def test_channels_come_in_the_order_that_was_asked_for(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "x.nii", voxels(shape=(4, 5, 6, 3)))
    data = read_case([path]).data
    np.testing.assert_array_equal(read_case([path], (2, 0)).data, data[[2, 0]])


def test_a_joined_set_tells_names_sources_and_licences(sets: tuple[Path, Path], tmp_path: Path) -> None:
    about = {"licence": "CC BY 3.0", "labels": {"0": "background", "1": "pz", "2": "central gland"}}
    (sets[1] / "dataset.json").write_text(json.dumps(about))
    joined = join(sets, tmp_path / "deep" / "Prostate", channels=(0,), leave_out=["Prostate3T-01-0002"])
    assert joined.name == "Prostate" and joined.channels == ("T2",)
    assert joined.labels == {1: "PZ", 2: "TZ / central gland"}
    assert joined.licence == "PROSTATE: CC-BY-SA 4.0; NCI-ISBI-2013: CC BY 3.0"
    assert joined.reference == "PROSTATE: Radboud University, Nijmegen Medical Centre"
    assert {case.id: case.source for case in joined.cases} == {
        "Prostate3T-01-0001": "NCI-ISBI-2013",
        "Prostate3T-01-0003": "NCI-ISBI-2013",
        **{f"prostate_0{n}": "PROSTATE" for n in range(3)},
    }
    again = join([tmp_path / "deep" / "Prostate"], tmp_path / "again")  # joined sets join; sources stay
    assert again.cases[0].source == "NCI-ISBI-2013" and again.cases[0].channels == (0,)


def test_a_joined_set_moves_with_its_sets(sets: tuple[Path, Path], tmp_path: Path) -> None:
    join(sets, tmp_path / "all" / "Prostate", channels=(0,))
    new = tmp_path / "elsewhere"
    new.mkdir()
    for folder in (*sets, tmp_path / "all"):
        folder.rename(new / folder.name)
    assert len(load_scans(find_cases(new / "all" / "Prostate").cases)) == 6


def test_several_files_of_a_case_stay_together(tmp_path: Path) -> None:
    for name in ("p_0000", "p_0001"):
        write_nifti(tmp_path / "set" / "imagesTr" / f"{name}.nii", voxels())
    write_nifti(tmp_path / "set" / "labelsTr" / "p.nii", (voxels() > 600).astype(np.uint8))
    (case,) = join([tmp_path / "set"], tmp_path / "joined").cases
    assert case.id == "p" and [path.name for path in case.images] == ["p_0000.nii", "p_0001.nii"]
    assert load_scan(case).image.channels == 2


def test_what_cannot_be_joined_is_refused(sets: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(lambda: join([*sets, sets[0]], out), "PROSTATE", "two sets")
    refused(lambda: join(sets, out, leave_out=["nobody"]), "nobody", "none of the sets")
    refused(lambda: join(sets, out, channels=(0, 0)), "channels")
    refused(lambda: join(sets, out, channels=(-1,)), "channels")
    refused(lambda: join([write_data(tmp_path / "a"), write_data(tmp_path / "b")], out), "a_1", "a and b")
    assert not out.exists()
    refused(lambda: join(sets, sets[1]), "holds other files")
    join(sets, out)
    refused(lambda: join(sets, out), "exists already")
    assert len(join(sets[:1], out, force=True).cases) == 3


@pytest.mark.parametrize(
    "entry",
    [
        {"image": []},
        {"image": [1]},
        {"image": "x.nii", "channels": ["T2"]},
        {"image": "x.nii", "channels": 0},
        {"image": "x.nii", "source": 5},
        {"image": "x.nii", "id": 7},
    ],
)
def test_a_damaged_list_is_refused(entry: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"training": [entry]}))
    refused(lambda: find_cases(tmp_path), "dataset.json", "'training' must list")


# ---- From files to a report ----


def command(*words: str, status: int = 0) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert (stopped.value.code or 0) == status


def test_the_recipe_of_the_paper_runs_on_its_mixed_prostate_data(
    sets: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("torch.utils.tensorboard", reason="training needs the extra 'train'")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.json").write_text(json.dumps(small_settings()))
    command("data", "join", "Task05_Prostate", "NCI-ISBI-2013", "-o", "Prostate", "--channels", "0")
    assert "6 labelled cases, 3 of NCI-ISBI-2013, 3 of PROSTATE" in capsys.readouterr().out
    train = ["train", "Prostate", "-o", "cv", "--recipe", "paper_prostate", "--config", "small.json"]
    command(*train, "--folds", "2", "--quiet")
    table = capsys.readouterr().out
    assert "NCI-ISBI-2013 (3 cases): dice 0." in table and "PROSTATE (3 cases): dice 0." in table

    config = json.loads((tmp_path / "cv" / "fold_0" / "config.json").read_text())
    assert config["recipe"] == "paper_prostate" and config["merge"] and config["labels"] == ["foreground"]
    assert config["preprocess"]["normalise"] == "slice" and config["preprocess"]["modalities"] == 1
    assert config["train"]["betas"] == [0.5, 0.5] and config["train"]["learning_rate"] == 1.6e-3
    sources = {f"Prostate3T-01-000{n}": "NCI-ISBI-2013" for n in (1, 2, 3)}
    sources |= {f"prostate_0{n}": "PROSTATE" for n in range(3)}
    split = json.loads((tmp_path / "cv" / "fold_0" / "split.json").read_text())
    assert split["sources"] == sources

    stored = json.loads((tmp_path / "cv" / "report.json").read_text())
    assert {name: case["source"] for name, case in stored["cases"].items()} == sources
    alone = stored["summary_by_source"]
    for source in ("PROSTATE", "NCI-ISBI-2013"):
        dice = [c["scores"]["merged"]["dice"] for c in stored["cases"].values() if c["source"] == source]
        assert alone[source]["merged"]["dice"]["n"] == 3
        assert alone[source]["merged"]["dice"]["mean"] == pytest.approx(np.mean(dice))
    read = Report.from_json((tmp_path / "cv" / "report.json").read_text())
    assert read.sources == sources and json.loads(read.to_json()) == stored

    model = str(tmp_path / "cv" / "fold_0")
    command("evaluate", model, "Prostate", "--json", "again.json", "--quiet")
    assert json.loads((tmp_path / "again.json").read_text())["cases"]["prostate_00"]["source"] == "PROSTATE"
    scan = "Task05_Prostate/imagesTr/prostate_00.nii.gz"
    command("predict", model, scan, "-o", "mask.nii.gz", status=2)
    assert "1 channel(s), got 2" in capsys.readouterr().err
    command("predict", model, scan, "-o", "mask.nii.gz", "--channels", "0")
    command("predict", model, "NCI-ISBI-2013/images", "-o", "masks")
    assert read_label(tmp_path / "mask.nii.gz").shape == (32, 32, 5)
    assert read_label(tmp_path / "masks" / "Prostate3T-01-0002.nii.gz").shape == (40, 40, 4)


def test_reports_of_a_single_set_say_nothing_of_sources() -> None:
    report = Report({"a": {"merged": {"dice": 0.5}}}, {}, {})
    assert report.by_source == {} and "source" not in report.to_json()
