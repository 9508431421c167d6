from __future__ import annotations

import json
import sys

import pytest

from memback.commands import REGISTRY, main

MODELS = "tests.bridges.torch_models"
GPT = [f"{MODELS}:small_gpt", "--input", "2x8:int64"]


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def run(capsys, *arguments):
    code = main(["torch", *arguments])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return code, printed


def report(capsys, *arguments):
    code, printed = run(capsys, *arguments, "--rounds", "1", "--json", "-")
    assert (code, printed.err) == (0, "")
    return json.loads(printed.out)


def refusal(capsys, *arguments):
    code, printed = run(capsys, *arguments)
    lines = printed.err.splitlines()
    assert [line for line in lines if line.startswith("Error: ")] == lines[:1], printed.err
    return code, lines[0].removeprefix("Error: ")


@pytest.mark.torch
def test_the_report_is_shown_and_written(torch, tmp_path, capsys):
    files = [str(tmp_path / "report.html"), str(tmp_path / "report.json")]
    assert main(["torch", *GPT, "--rounds", "1", "-o", files[0], "-o", files[1], "--layers"]) == 0
    out = capsys.readouterr().out
    for word in ("retain-all", "full", "inference", "h.1.attn", "native_layer_norm", f"Wrote {files[0]}"):
        assert word in out
    assert main(["diff", files[1], files[1], "--fail-above", "0%", "--quiet"]) == 0


@pytest.mark.torch
def test_a_real_run_measures_what_a_dry_one_predicts(torch, capsys):
    real, dry = report(capsys, *GPT), report(capsys, *GPT, "--dry")
    assert real["profile"]["name"] == f"{MODELS}:small_gpt"
    assert real["profile"]["data"]["inputs"] == ["2x8:int64"]
    for found, predicted in zip(real["runs"], dry["runs"], strict=True):
        assert found["saved_bytes"] == predicted["saved_bytes"]
        assert found["measured_peak_bytes"] == found["predicted_peak_bytes"] == predicted["predicted_peak_bytes"]
        assert predicted["measured_peak_bytes"] is predicted["loss"] is None


@pytest.mark.torch
def test_a_factory_may_give_the_inputs_and_a_function_the_loss(torch, capsys):
    found = report(capsys, f"{MODELS}:with_inputs", "--loss", "torch:std", "--mode", "full", "--device", "cpu")
    assert found["arguments"]["input_bytes"] == 2 * 4 * 4 + 2 * 5 * 4
    assert [layer["op"] for layer in found["runs"][0]["layers"]][-1] == "std"
    assert report(capsys, f"{MODELS}:ready", "--input", "input=2x4", "--mode", "full")["runs"][0]["loss"] is not None


MASKED = [f"{MODELS}:with_arguments", "--arg", "layers=2", "--input", "2x4:int64", "--mode", "full", "--dry"]
MASK = ["--input", "mask=2x4:int64=1"]


@pytest.mark.torch
def test_a_factory_takes_arguments_as_its_annotations_want_them(torch, capsys):
    def made(*arguments):
        found = report(capsys, *MASKED, *MASK, *arguments)["profile"]
        return found["model"]["name"], found["dtype"], found["model"]["arguments"]

    assert made() == ("Masked 2 8 '' 1.0 False", "float32", {"layers": "2"})
    given = {"width": "16", "dtype": "bfloat16", "name": "7", "scale": "2", "frozen": "False"}
    texts = [text for name, value in given.items() for text in ("--arg", f"{name}={value}")]
    assert made(*texts) == ("Masked 2 16 '7' 2 False", "bfloat16", {"layers": "2", **given})
    linear = [
        "--arg",
        "in_features=4",
        "--arg",
        "out_features=3",
        "--arg",
        "bias=false",
        "--arg",
        "dtype=torch.float64",
    ]
    found = report(capsys, "torch.nn:Linear", *linear, "--input", "2x4:float64", "--mode", "full", "--dry")
    assert found["arguments"]["parameter_bytes"] == 4 * 3 * 8


@pytest.mark.torch
def test_a_factory_may_convert_its_module_in_a_dry_run(torch):
    from memback.bridges.torch.loading import without_memory
    from tests.bridges.torch_models import small_gpt

    for convert in (lambda m: m.bfloat16(), lambda m: m.double().half(), lambda m: m.to("cpu", torch.float16)):
        real = convert(small_gpt())
        with without_memory():
            made = convert(small_gpt())
        assert made.lm_head.weight is made.wte.weight  # tied as before
        assert [p.dtype for p in made.parameters()] == [p.dtype for p in real.parameters()]


@pytest.mark.torch
def test_a_factory_may_give_arguments_by_position_and_by_name(torch, capsys):
    found = report(capsys, f"{MODELS}:with_args_and_kwargs", "--arg", "rows=3", "--mode", "full")
    assert found["arguments"]["input_bytes"] == 3 * 4 * (8 + 4)


@pytest.mark.torch
def test_a_mask_may_be_filled_with_ones(torch, capsys):
    real = [f"{MODELS}:with_arguments", "--arg", "layers=1", "--input", "2x4:int64", "--mode", "full"]
    ones, zeros = (report(capsys, *real, "--input", mask)["runs"][0]["loss"] for mask in ("mask=2x4=1", "mask=2x4=0"))
    assert ones is not None
    assert zeros is None  # not finite: divided by the number of those that count


@pytest.mark.torch
@pytest.mark.parametrize("dry", [["--dry"], []])
def test_floats_where_indices_belong_are_answered_with_the_remedy(torch, dry, capsys):
    code, text = refusal(capsys, f"{MODELS}:small_gpt", "--input", "2x8", "--mode", "full", *dry)
    assert code == 1
    assert text.endswith(". Indices are whole numbers: write --input 2x8:int64")
    named = [f"{MODELS}:with_arguments", "--arg", "layers=1", "--input", "ids=2x4=1", "--input", "mask=2x4:int64=1"]
    assert refusal(capsys, *named, "--mode", "full", *dry)[1].endswith("write --input ids=2x4:int64")


@pytest.mark.torch
def test_another_dtype_than_the_module_s_is_answered_with_how_it_is_written(torch, capsys):
    linear = ["torch.nn:Linear", "--arg", "in_features=4", "--arg", "out_features=3", "--arg", "dtype=torch.bfloat16"]
    code, text = refusal(capsys, *linear, "--input", "2x4", "--mode", "full")
    assert code == 1
    assert text.endswith(". The dtype of an input is written after its shape, as in --input 8x1024:bfloat16")


@pytest.mark.torch
def test_the_report_says_which_loss_and_mode_the_command_asked_for(torch, tmp_path, capsys):
    page = tmp_path / "report.html"
    code, printed = run(capsys, *GPT, "--dry", "--eval", "--loss", "torch:std", "--mode", "full", "-o", str(page))
    assert code == 0
    for shown in (printed.out, page.read_text(encoding="utf-8")):
        assert "The module is in evaluation mode. Loss: torch:std." in shown
    asked = report(capsys, *GPT, "--dry", "--mode", "full")["profile"]
    assert asked["model"]["training"] is True
    assert asked["data"]["loss"] == "the sum of what the module gives"


@pytest.mark.torch
def test_mixed_precision_and_evaluation_can_be_chosen(torch, capsys):
    cast = report(capsys, *GPT, "--autocast", "bfloat16", "--mode", "full", "--eval")
    assert "bfloat16" in {layer["dtype"] for layer in cast["runs"][0]["layers"]}


@pytest.mark.torch
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["tests"], 2, "'tests' names nothing; write it as package.module:name"),
        (["no.such:thing"], 2, "there is no module 'no' to be found from "),
        ([f"{MODELS}:smal_gpt"], 2, "there is no factory 'smal_gpt' (did you mean 'small_gpt'?)"),
        (
            [f"{MODELS}:small_gpt"],
            2,
            "say what tests.bridges.torch_models:small_gpt is called with: --input 8x3x224x224",
        ),
        ([f"{MODELS}:with_inputs", "--input", "2x4"], 2, "gives the inputs itself: leave out --input"),
        ([f"{MODELS}:no_module", "--input", "2"], 2, "gives 3, which is no torch.nn.Module"),
        (
            [f"{MODELS}:fails", "--input", "2"],
            1,
            "can't make its module: ValueError: no such weights (at torch_models.py:",
        ),
        (
            [f"{MODELS}:wrong", "--input", "2x4"],
            1,
            "can't be run: RuntimeError: mat1 and mat2 shapes cannot be multiplied",
        ),
        ([f"{MODELS}:on_values", "--input", "2x4", "--dry"], 1, "the module takes a decision on values"),
        (
            [*MASKED, "--arg", "width=x"],
            2,
            "--arg, for tests.bridges.torch_models:with_arguments: width (='x') must be",
        ),
        ([*MASKED, "--arg", "widht=2"], 2, "unknown key widht (did you mean 'width'?)"),
        ([*MASKED, "--arg", "layers=2"], 2, "--arg layers is given twice"),
        ([*MASKED, "--arg", "width"], 2, "--arg 'width' is no NAME=VALUE; write it as --arg n_layer=4"),
        ([*MASKED, "--arg", "dtype=float33"], 2, "there is no dtype 'float33' in PyTorch"),
        (["torch.nn:Linear", "--input", "2x4", "--arg", "in_features=4"], 2, "give --arg out_features=VALUE"),
        ([f"{MODELS}:ready", "--input", "2x4", "--arg", "n=4"], 2, "is a module already, and takes no --arg"),
        ([*MASKED, "--input", "mask=2x4:bool=2"], 2, "'2' is no value of bool"),
        ([*GPT, "--input", "8x"], 2, "input '8x' is no shape; write it as 8x3x224x224"),
        ([*GPT, "--input", "8:int63"], 2, "there is no dtype 'int63' in PyTorch"),
        ([*GPT, "--input", "a=8", "--input", "a=9"], 2, "input 'a' is given twice"),
        ([*GPT, "--input", "9999999999x9999999999"], 2, "has more than 2**63 - 1 bytes"),
        ([*GPT, "--device", "toaster"], 2, "there is no device 'toaster'"),
        ([*GPT, "--device", "cuda:99"], 2, "device cuda:99 is not there"),
        ([*GPT, "--mode", "half"], 2, "unknown mode 'half'"),
        ([*GPT, "-o", "report.doc"], 2, ".doc"),
    ],
)
def test_wrong_requests_end_in_one_message(torch, arguments, code, message, capsys):
    found, text = refusal(capsys, *arguments)
    assert found == code
    assert message in text


@pytest.mark.torch
def test_a_step_that_does_not_fit_is_refused_before_it_is_run(torch, monkeypatch, capsys):
    from memback.bridges.torch.recording import guard, step
    from memback.profiling.guard import Available

    def refuse(*_):
        raise AssertionError("work began")

    monkeypatch.setattr(guard, "available_memory", lambda: Available(30_000, "limit of the test"))
    monkeypatch.setattr(step.Step, "time", refuse)
    code, text = refusal(capsys, *GPT)
    assert code == 1
    assert "in mode full" in text
    assert "limit of the test" in text
    assert "Modes that would fit: --mode inference" in text


@pytest.mark.torch
def test_what_a_dry_run_does_not_know_is_a_note(torch, tmp_path, monkeypatch, capsys):
    made = "torch.nn.Embedding(8, 8, sparse=True)"
    (tmp_path / "table.py").write_text(f"import torch\ndef make():\n    return {made}\n")
    monkeypatch.chdir(tmp_path)
    code, printed = run(capsys, "table:make", "--input", "3x4:int64", "--dry", "--mode", "full")
    assert code == 0
    assert printed.err.startswith("Note: A dry run does not know the size of")


# -- without PyTorch


OTHERS = {
    "profile": ["notes", "--dry", "--quiet"],
    "train": ["notes", "--steps", "1", "--quiet"],
    "plan": ["notes", "--budget", "1MiB", "--quiet"],
    "fit": ["notes", "--budget", "1MiB", "--quiet"],
    "notes": ["--help"],
    "list": ["--quiet"],
    "report": ["--help"],
    "diff": ["--help"],
    "sweep": ["notes", "--grid", "batch=1,2", "--quiet"],
}


@pytest.fixture
def without_torch(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("memback.bridges.torch")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)


def test_without_pytorch_the_command_says_what_to_install(without_torch, capsys):
    code, message = refusal(capsys, *GPT)
    assert code == 1
    assert "pip install 'torch>=2.6'" in message


def test_without_pytorch_there_is_help(without_torch, capsys):
    assert main(["torch", "--help"]) == 0
    assert "MODULE:FACTORY" in capsys.readouterr().out


@pytest.mark.parametrize("command", sorted(set(REGISTRY) - {"torch"}))
def test_without_pytorch_every_other_command_works(without_torch, command):
    assert main([command, *OTHERS[command]]) == 0


# -- sizes, types, and what fits

LINEAR = ["torch.nn:Linear", "--arg", "in_features=4096", "--arg", "out_features=4096", "--input", "64x4096"]
ON_T4 = ["--device", "cuda:t4", "--optimizer", "adamw", "--dry"]


def with_sizes(batch: int = 2, sequence: int = 4):
    import torch as t

    return t.nn.Linear(8, 8), t.ones(batch, sequence, 8)


@pytest.mark.torch
def test_a_batch_is_the_first_dimension_of_the_inputs_or_an_argument_of_the_factory(torch, capsys):
    found = report(capsys, *LINEAR, "--batch", "3", "--dry", "--mode", "full")
    assert found["profile"]["data"]["inputs"] == ["3x4096:float32"]
    assert found["arguments"]["input_bytes"] == 3 * 4096 * 4
    own = [f"{__name__}:with_sizes", "--batch", "5", "--sequence", "7", "--dry", "--mode", "full"]
    assert report(capsys, *own)["arguments"]["input_bytes"] == 5 * 7 * 8 * 4


@pytest.mark.torch
def test_a_dtype_is_that_of_parameters_and_inputs(torch, capsys):
    for how in ([], ["--dry"]):
        found = report(capsys, *LINEAR, "--dtype", "bf16", "--mode", "full", *how)
        assert found["profile"]["dtype"] == "bfloat16"
        assert found["arguments"]["input_bytes"] == 64 * 4096 * 2
    amp = report(capsys, *LINEAR, "--amp", "bf16", "--mode", "full", "--dry")
    assert amp["profile"]["data"]["autocast"] == "bfloat16"


@pytest.mark.torch
def test_the_largest_batch_of_a_factory_is_found(torch, capsys):
    code, printed = run(capsys, *LINEAR, *ON_T4, "--find", "batch", "--batch", "131072", "--json", "-")
    found = json.loads(printed.out)
    of = {trial["size"]: trial["fits"] for trial in found["trials"]}
    assert (code, of[found["size"]], of[found["size"] + 1]) == (0, True, False)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sequence", "3", "--dry"], "takes no argument sequence or sequence_length or seq_len"),
        (["--find", "batch", "--dry"], "--find batch is for a card"),
        (["--find", "batch", *ON_T4, "-o", "report.html"], "-o is for a report"),
        (["--input", "3x4", "--batch", "3", "--dry"], "do not all have the same first dimension"),
        (["--dtype", "bf15", "--dry"], "there is no dtype 'bf15'"),
    ],
)
def test_sizes_that_the_module_does_not_have_are_refused(torch, capsys, arguments, message):
    code, said = refusal(capsys, *LINEAR, *arguments)
    assert code == 2
    assert message in said


@pytest.mark.torch
def test_a_config_without_transformers_is_refused_with_what_to_install(torch, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    code, said = refusal(capsys, "hf:gpt2", "--dry")
    assert code == 2
    assert "pip install 'transformers>=4.50'" in said
    monkeypatch.setitem(sys.modules, "peft", None)
    code, said = refusal(capsys, *LINEAR, "--lora", "r=4", "--dry")
    assert code == 2
    assert "pip install 'peft>=0.15'" in said


@pytest.mark.torch
def test_a_step_that_no_batch_makes_small_enough_is_an_error(torch, capsys):
    wide = ["torch.nn:Linear", "--arg", "in_features=65536", "--arg", "out_features=65536", "--input", "1x65536"]
    code, said = refusal(capsys, *wide, *ON_T4, "--find", "batch")
    assert code == 1
    assert "no batch fits on cuda:t4: even batch 1 needs" in said
