"""A run goes on with the data and the weights that it began with, wherever they lie, and with no others."""

import shutil
from pathlib import Path

import datasets
import pytest
from helpers import small
from outcomes import outcome
from PIL import Image

from splitfed import Scenario, simulate
from splitfed.data.dataset import forget
from splitfed.errors import DataError, ModelError, RunError
from splitfed.run.observer import Observer
from splitfed.scenario.places import for_clients, resolved, same_experiment


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    return tmp_path


def fill(place: Path, dark: str = "dark", light: str = "light", count: int = 20) -> Path:
    for part in ("train", "test"):
        for kind, shade in ((dark, 40), (light, 210)):
            (place / part / kind).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (8, 8), (shade + number,) * 3).save(place / part / kind / f"{number}.png")
    return place


def scenario(*more: str) -> Scenario:
    return small("data.path=d", "data.limit=null", "data.test_limit=null", "federation.rounds=3", *more)


class Stop(Observer):
    def round(self, metrics, sent, finished) -> None:
        if metrics.round == 1:
            raise KeyboardInterrupt


def interrupted(plan: Scenario, runs: Path) -> Path:
    with pytest.raises(KeyboardInterrupt):
        simulate(plan, runs=runs, observers=[Stop()])
    (folder,) = runs.iterdir()
    return folder


def test_the_stored_scenario_has_full_paths_and_a_fingerprint(here):
    fill(here / "a" / "d")
    run = simulate(scenario("federation.rounds=1"), runs=here / "runs").folder
    stored = Scenario.load(run / "scenario.yaml")
    assert stored.data.path == str(here / "a" / "d")
    mark = stored.data.fingerprint
    assert (mark.train, mark.test, mark.classes) == (40, 40, ("dark", "light"))
    assert same_experiment(scenario("federation.rounds=1"), stored)
    assert not same_experiment(scenario("federation.rounds=2"), stored)
    assert not same_experiment(scenario("federation.rounds=1", "data.path=elsewhere"), stored)


def test_resumed_from_another_folder_it_has_the_same_images(here, monkeypatch):
    fill(here / "a" / "d")
    fill(here / "b" / "d", "light", "dark")  # the same path leads to other images there
    expected = outcome(simulate(scenario(), runs=here / "whole").folder)
    folder = interrupted(scenario(), here / "runs")
    monkeypatch.chdir(here / "b")
    simulate(resume=folder)
    assert outcome(folder) == expected


def test_moved_data_are_named_and_other_data_are_refused(here, caplog):
    place = fill(here / "a" / "d")
    expected = outcome(simulate(scenario(), runs=here / "whole").folder)
    folder = interrupted(scenario(), here / "runs")
    place.rename(here / "moved")
    with pytest.raises(DataError, match=r"data\.path: nothing to load at"):
        simulate(resume=folder)
    others = {
        "its classes are 'dark', 'pale', not 'dark', 'light'": ("dark", "pale", 20),
        "it has 42 training images, not 40": ("dark", "light", 21),
        "its images are others": ("light", "dark", 20),
    }
    for number, (difference, kinds) in enumerate(others.items()):
        with pytest.raises(DataError, match=f"holds other data than the run began with: {difference}; name the place"):
            simulate(resume=folder, data=fill(here / f"other-{number}", *kinds))
    simulate(resume=folder, data=here / "moved")
    assert outcome(folder) == expected
    assert Scenario.load(folder / "scenario.yaml").data.path == str(here / "moved")
    assert not caplog.records


def test_a_run_without_a_fingerprint_goes_on_with_one_warning_and_gets_one(here, caplog):
    fill(here / "a" / "d")
    expected = outcome(simulate(scenario(), runs=here / "whole").folder)
    folder = interrupted(scenario(), here / "runs")
    (folder / "scenario.yaml").write_text(scenario().to_yaml())  # as earlier versions wrote it
    simulate(resume=folder)
    assert [record.getMessage() for record in caplog.records] == [
        "this run was started without a fingerprint of its data: nothing tells whether those at d are the same"
    ]
    assert Scenario.load(folder / "scenario.yaml").data.fingerprint
    assert outcome(folder) == expected


def test_weights_are_held_to_what_they_were(here):
    import torch
    from safetensors.torch import save_file

    from splitfed.model.build import build
    from splitfed.seeds import Key

    def write(path: Path, seed: int) -> Path:
        vit = build(small().model, 10, key=Key(seed))
        save_file({name: tensor.contiguous() for name, tensor in vit.state_dict().items()}, path)
        return path

    write(here / "a" / "w.safetensors", 1)
    plan = small("model.weights=w.safetensors", "federation.rounds=3")
    expected = outcome(simulate(plan, runs=here / "whole").folder)
    folder = interrupted(plan, here / "runs")
    assert Scenario.load(folder / "scenario.yaml").model.weights == str(here / "a" / "w.safetensors")
    (here / "a" / "w.safetensors").rename(here / "moved.safetensors")
    with pytest.raises(ModelError, match=r"w\.safetensors cannot be read \(No such file.*--weights"):
        simulate(resume=folder)
    with pytest.raises(ModelError, match="holds other weights than the run began with"):
        simulate(resume=folder, weights=write(here / "others.safetensors", 2))
    simulate(resume=folder, weights=here / "moved.safetensors")
    assert outcome(folder) == expected
    assert torch.get_num_threads() >= 1


def test_broken_images_end_a_run_before_it_begins_and_all_are_named(here):
    place = fill(here / "a" / "d")
    wrong = [place / "train" / "dark" / "3.png", place / "test" / "light" / "0.png", place / "test" / "dark" / "1.png"]
    whole = wrong[0].read_bytes()
    for path in wrong:
        path.write_bytes(whole[:40])
    with pytest.raises(DataError) as caught:
        simulate(scenario(), runs=here / "runs")
    assert str(caught.value).startswith("data.path: 3 images cannot be decoded; repair or remove them, or leave them")
    assert all(f"{path.relative_to(here / 'a')}: " in str(caught.value) for path in wrong)
    assert not (here / "runs").exists() or not list((here / "runs").iterdir())
    for path in wrong:
        path.write_bytes(whole)
    assert simulate(scenario(), runs=here / "runs").rounds  # in the same process: the folder is looked at again


def test_bad_images_that_are_left_out_are_counted_and_remembered(here):
    place = fill(here / "a" / "d")
    for name in ("train/dark/3.png", "test/light/0.png"):
        (place / name).write_bytes(b"no image")
    plan = scenario("data.on_bad=skip")
    result = simulate(plan, runs=here / "runs")
    assert result.summary.images_left_out == 2
    mark = Scenario.load(result.folder / "scenario.yaml").data.fingerprint
    assert (mark.train, mark.test) == (40, 40)  # what lies there
    assert (len(mark.bad_train), len(mark.bad_test)) == (1, 1)
    removed = fill(here / "b")
    for name in ("train/dark/3.png", "test/light/0.png"):
        (removed / name).unlink()
    without = simulate(scenario(f"data.path={removed}"), runs=here / "without")
    assert [row.eval_loss for row in without.rounds] == [row.eval_loss for row in result.rounds]
    folder = interrupted(plan, here / "again")
    simulate(resume=folder)
    assert outcome(folder)["model"] == outcome(result.folder)["model"]


def test_a_sweep_is_held_to_its_data_and_not_to_the_current_folder(here, monkeypatch):
    from splitfed.reports.sweep.folder import State, prepare, state
    from splitfed.reports.sweep.plan import Sweep

    fill(here / "study" / "d")
    (here / "study" / "s.yaml").write_text("scenario: t.yaml\nseeds: [0]\n")
    (here / "study" / "t.yaml").write_text(scenario("federation.rounds=1").to_yaml())
    monkeypatch.chdir(here / "study")
    (point,) = Sweep.load("s.yaml").points
    prepare(here / "p", point)
    simulate(resume=here / "p")
    monkeypatch.chdir(here)
    (again,) = Sweep.load("study/s.yaml").points
    assert state(here / "p", again) == State.DONE
    copy = shutil.copytree(here / "study" / "d", here / "copy")
    (moved,) = Sweep.load("study/s.yaml", [f"data.path={copy}"]).points
    assert state(here / "p", moved) == State.DONE
    shutil.rmtree(copy)
    fill(copy, "light", "dark")
    forget()
    with pytest.raises(RunError, match="was run with other settings"):
        state(here / "p", moved)


def test_clients_are_told_no_folder_of_the_servers(here):
    fill(here / "a" / "d")
    told = for_clients(resolved(scenario()))
    assert told.data.path == "./d"
    assert str(here) not in told.to_yaml()
    assert for_clients(small("data.path=digits")).data.path == "digits"
