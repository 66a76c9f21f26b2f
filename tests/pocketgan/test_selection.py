"""Rows by clustering and at random, and the file of names."""

import numpy as np
import pytest
import torch

from pocketgan.selection import at_random, common_photos, nearest_to_centres, read_selection, write_selection


def planted(clusters, members, spread=0.1):
    """(clusters · members, 8): row i belongs to cluster i % clusters; the last member stands on its centre."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(8)[:clusters] * 10
    noise = torch.randn(members - 1, clusters, 8, generator=generator) * spread
    noise -= noise.mean(0)  # so that the centre of a cluster is the planted one
    return torch.cat((centres + noise, centres[None])).flatten(0, 1)


def test_each_cluster_gives_the_member_nearest_its_centre():
    features = planted(clusters=4, members=7)
    assert nearest_to_centres(features, 4, seed=0) == [24, 25, 26, 27]


def test_a_choice_is_a_member_of_its_cluster(monkeypatch):
    class Planted:
        labels_ = np.array([0, 0, 1, 1])

        def __init__(self, **settings):
            assert settings == {"n_clusters": 2, "n_init": 10, "random_state": 0}

        def fit(self, rows):
            return self

        def transform(self, rows):
            return np.array([[4, 9], [3, 9], [2, 1], [9, 5.0]])  # row 2 is the nearest to both centres

    monkeypatch.setattr("sklearn.cluster.KMeans", Planted)
    assert nearest_to_centres(torch.randn(4, 3), 2, seed=0) == [1, 2]


def test_every_row_or_one():
    features = torch.tensor([[0.0, 0], [1, 0], [6, 0], [10, 0], [9, 1]])
    assert nearest_to_centres(features, 5, seed=0) == [0, 1, 2, 3, 4]
    assert nearest_to_centres(features, 1, seed=0) == [2]


@pytest.mark.parametrize("count", [1, 5, 17, 39, 40])
def test_choices_differ_and_depend_on_the_seed_alone(count):
    features = torch.randn(40, 16, generator=torch.Generator().manual_seed(1))
    chosen = nearest_to_centres(features, count, seed=3)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == count
    assert chosen == nearest_to_centres(features.clone(), count, seed=3)


def test_equal_rows_are_chosen_once_or_refused():
    features = torch.tensor([[0.0, 0], [0, 0], [0, 0], [3, 3], [3, 3], [8, 1]])
    assert nearest_to_centres(features, 3, seed=0) == [0, 3, 5]
    with pytest.raises(ValueError, match=r"the 6 rows form no more than 3 clusters.*give a count of 1 to 3"):
        nearest_to_centres(features, 4, seed=0)


def test_random_is_a_control():
    chosen = at_random(30, 10, seed=0)
    assert chosen == sorted(set(chosen)) == at_random(30, 10, seed=0)
    assert len(chosen) == 10
    assert 0 <= chosen[0] <= chosen[-1] < 30
    assert chosen != at_random(30, 10, seed=1)
    assert at_random(30, 30, seed=0) == list(range(30))


@pytest.mark.parametrize("count", [-1, 0, 7])
def test_a_count_that_cannot_be_chosen(count):
    with pytest.raises(ValueError, match=f"count is {count}, but there are 6 rows .*; give a count of 1 to 6"):
        nearest_to_centres(torch.zeros(6, 2), count, seed=0)
    with pytest.raises(ValueError, match=f"count is {count}, but there are 6"):
        at_random(6, count, seed=0)
    with pytest.raises(ValueError, match="there are no rows"):
        at_random(0, 1, seed=0)


def test_common_photos():
    assert common_photos({"a": ["1", "2", "3"], "b": ["3", "2"]}) == {"2", "3"}
    with pytest.raises(ValueError, match=r"every candidate \(a has 1, b has 2\); finish their synthesis"):
        common_photos({"a": ["1"], "b": ["3", "2"]})


def test_file_round_trip(tmp_path):
    file = tmp_path / "deep" / "picks.txt"
    names = ["photos/b.png", "photos/a photo.png", "photos/é#1.png"]
    write_selection(file, names, "chosen by hand\nseed: 0")
    assert read_selection(file) == names
    assert file.read_text(encoding="utf-8").splitlines()[:3] == ["# chosen by hand", "# seed: 0", "photos/b.png"]
    assert [found.name for found in file.parent.iterdir()] == ["picks.txt"]
    file.write_text("\ufeff# by an editor\r\n\r\n  sepia \r\n", encoding="utf-8")
    assert read_selection(file) == ["sepia"]


@pytest.mark.parametrize("name", ["", " a", "#a", "a\nb"])
def test_a_name_that_would_not_be_read_back(tmp_path, name):
    with pytest.raises(ValueError, match="cannot stand on a line of its own"):
        write_selection(tmp_path / "picks.txt", [name], "by hand")
    assert list(tmp_path.iterdir()) == []


def test_bad_files(tmp_path):
    file = tmp_path / "picks.txt"
    with pytest.raises(FileNotFoundError, match=r"picks\.txt does not exist; .* as a list in brackets"):
        read_selection(file)
    file.write_text("# nothing chosen\n\n")
    with pytest.raises(ValueError, match=r"picks\.txt holds no names"):
        read_selection(file)
    file.write_text("b\na\nb\na\nc\n")
    with pytest.raises(ValueError, match="holds a, b more than once"):
        read_selection(file)
    file.write_bytes(b"\x89PNG\r\n\xff")
    with pytest.raises(ValueError, match=r"picks\.txt is no text file"):
        read_selection(file)
