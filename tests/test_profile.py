"""The time of every step of a plan, as the library measures it."""

import json

import numpy as np
import pytest

from mdrt import _core, models, profile
from mdrt.errors import InvalidArgumentError

FEEDS = {"input_ids": np.zeros((1, 24), np.int32)}


@pytest.fixture(scope="module")
def model():
    return _core.Model(models.builtin_path(), threads=2)


def test_every_step_of_the_plan_in_its_order(model):
    steps = model.profile("text_encoder", FEEDS, 3)
    plan = model.describe_plan("text_encoder", FEEDS).splitlines()[1:]
    assert [line.split()[:2] for line in plan] == [step[0].split() for step in steps]
    nodes = json.loads(model.metadata())["components"]["text_encoder"]["nodes"]
    for _, node, tasks, macs, seconds in steps:
        assert 0 <= node < len(nodes) and tasks >= 1 and macs >= 0
        assert len(seconds) == 3 and all(second > 0 for second in seconds)


def test_a_profile_leaves_results_alone(model):
    before = model.run("text_encoder", FEEDS, ["last_hidden_state"])["last_hidden_state"]
    model.profile("text_encoder", FEEDS, 1)
    after = model.run("text_encoder", FEEDS, ["last_hidden_state"])["last_hidden_state"]
    assert before.tobytes() == after.tobytes()


def test_groups_are_sums(model):
    document = json.loads(model.metadata())["components"]["text_encoder"]
    found = profile.run(model, "text_encoder", document, FEEDS, 2)
    for groups in (found["layers"], found["kernels"]):
        assert sum(group["steps"] for group in groups) == len(found["steps"])
        for key in ("seconds", "gmac"):
            total = sum(step[key] for step in found["steps"])
            assert sum(group[key] for group in groups) == pytest.approx(total)
        assert [group["seconds"] for group in groups] == sorted((group["seconds"] for group in groups), reverse=True)


@pytest.mark.parametrize(
    ("component", "feeds", "rounds", "words"),
    [
        ("text_encoder", FEEDS, 0, "rounds is 0"),
        ("text_encoder", {}, 1, "input_ids"),
        ("sound_decoder", FEEDS, 1, "no component"),
        ("text_encoder", {"input_ids": np.full((1, 24), 10**6, np.int32)}, 1, "ids go from 0"),
    ],
)
def test_refusals(model, component, feeds, rounds, words):
    with pytest.raises(InvalidArgumentError, match=words):
        model.profile(component, feeds, rounds)


def test_refused_beside_a_job(model):
    job = _core.Job(model, "tiger")
    with pytest.raises(InvalidArgumentError, match="unfinished"):
        model.profile("text_encoder", FEEDS, 1)
    job.close()
    assert model.profile("text_encoder", FEEDS, 1)
