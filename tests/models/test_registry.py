from __future__ import annotations

import inspect

import pytest

import memback as mb
from memback import models


@pytest.mark.parametrize("name", models.REGISTRY)
def test_a_model_says_in_a_line_what_it_is_and_can_be_trained(name):
    cls = models.REGISTRY[name]
    assert 10 < len(cls.__doc__.splitlines()[0]) < 120
    assert cls.__name__ in models.__all__
    assert getattr(models, cls.__name__) is cls
    assert list(inspect.signature(cls.loss).parameters)[:3] == ["self", "x", "y"]
    assert "dtype" in inspect.signature(cls).parameters


def test_build_makes_the_model_that_is_asked_for():
    model = models.build("mlp", inputs=3, outputs=2, hidden=[4], dtype="float64")
    assert isinstance(model, models.MLP)
    assert {p.dtype.name for p in model.parameters()} == {"float64"}


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("gtp", {}, "There is no model 'gtp'; there are notes_network, mlp, gpt"),
        ("mlp", {"inputs": 3, "outputs": 2, "hiden": [4]}, "model mlp has no argument hiden; it takes inputs, outputs"),
        ("mlp", {"inputs": 3}, "model mlp needs the argument outputs; it takes inputs"),
        ("mlp", {"inputs": 3, "outputs": 2}, "model mlp: give either `hidden`"),
        ("mlp", {"inputs": 3, "outputs": 2, "hidden": [4], "activation": "rely"}, "'rely'.* must be one of relu"),
        ("mlp", {"inputs": 3, "outputs": 2, "hidden": [4], "dtype": "float5"}, "model mlp: .*float5"),
        ("resnet", {"depth": 19}, r"`depth` \(=19\) must be 18, 34 or 50"),
        (
            "vit",
            {"image": 9, "patch": 2, "channels": 1, "classes": 2, "layers": 1, "width": 4, "heads": 1},
            "divisible",
        ),
    ],
)
def test_build_names_the_model_the_argument_and_what_there_is(name, arguments, message):
    with pytest.raises(mb.UsageError, match=message):
        models.build(name, **arguments)
