"""A config by its paths."""

from pocketgan.run_config import flat


def test_classes_in_a_list_stand_under_their_names():
    rank_search = {"class_path": "callbacks.RankSearch", "init_args": {"factors": [1, 2], "deep": {"a": 1}}}
    sparsity = [{"class_path": "callbacks.NToMSparsity", "init_args": {"n": n}} for n in (2, 4)]
    config = {
        "trainer": {
            "callbacks": [sparsity[0], rank_search, {"class_path": "RandomState"}, sparsity[1]],
            "logger": [],
            "devices": [0, 1],
        },
        "model": {"class_path": "BaseGAN", "init_args": {"weight": 3.0}},
        "rows": [{"a": 1}],
    }
    assert flat(config) == {
        "trainer.callbacks.NToMSparsity[1]": "callbacks.NToMSparsity",
        "trainer.callbacks.NToMSparsity[1].n": 2,
        "trainer.callbacks.RankSearch": "callbacks.RankSearch",
        "trainer.callbacks.RankSearch.factors": [1, 2],
        "trainer.callbacks.RankSearch.deep.a": 1,
        "trainer.callbacks.RandomState": "RandomState",
        "trainer.callbacks.NToMSparsity[2]": "callbacks.NToMSparsity",
        "trainer.callbacks.NToMSparsity[2].n": 4,
        "trainer.logger": [],
        "trainer.devices": [0, 1],
        "model.class_path": "BaseGAN",
        "model.init_args.weight": 3.0,
        "rows": [{"a": 1}],
    }
