"""Models made from configs of Hugging Face's transformers, by which nothing is downloaded and no code is run."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

import memback.bridges.torch as bridge
from memback.bridges.torch.hugging_face.inputs import Sizes
from memback.bridges.torch.hugging_face.model import load_config
from memback.commands import main
from memback.errors import UsageError

_TEXT = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "vocab_size": 120,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_BOTH = {
    "encoder_layers": 1,
    "decoder_layers": 1,
    "d_model": 32,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "vocab_size": 120,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
_GPT2 = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "n_layer": 2,
    "n_embd": 32,
    "n_head": 4,
    "vocab_size": 120,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_VISION = {key: value for key, value in _TEXT.items() if "_id" not in key and key != "vocab_size"}
CONFIGS = {
    "gpt2": (_GPT2, {"input_ids": (2, 16), "labels": (2, 16)}),
    "gpt2 unnamed": ({**_GPT2, "architectures": None}, {"input_ids": (2, 16), "labels": (2, 16)}),
    "gpt2 of two classes": (
        {**_GPT2, "architectures": ["GPT2ForSequenceClassification"], "pad_token_id": 0},
        {"input_ids": (2, 16), "labels": (2,)},
    ),
    "llama": (
        {**_TEXT, "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_key_value_heads": 2},
        {"input_ids": (2, 16), "labels": (2, 16)},
    ),
    "bert": (
        {**_TEXT, "model_type": "bert", "architectures": ["BertForMaskedLM"]},
        {"input_ids": (2, 16), "labels": (2, 16)},
    ),
    "bert that answers": (
        {**_TEXT, "model_type": "bert", "architectures": ["BertForQuestionAnswering"]},
        {"input_ids": (2, 16), "start_positions": (2,), "end_positions": (2,)},
    ),
    "bert without a head": (
        {**_TEXT, "model_type": "bert", "architectures": ["BertModel"]},
        {"input_ids": (2, 16)},
    ),
    "t5": (
        {
            "model_type": "t5",
            "architectures": ["T5ForConditionalGeneration"],
            "num_layers": 1,
            "d_model": 32,
            "d_ff": 64,
            "num_heads": 4,
            "d_kv": 8,
            "vocab_size": 120,
        },
        {"input_ids": (2, 16), "labels": (2, 16)},
    ),
    "vit": (
        {**_VISION, "model_type": "vit", "architectures": ["ViTForImageClassification"], "image_size": 32},
        {"pixel_values": (2, 3, 32, 32), "labels": (2,)},
    ),
    "whisper": (
        {
            **_BOTH,
            "model_type": "whisper",
            "architectures": ["WhisperForConditionalGeneration"],
            "max_source_positions": 20,
        },
        {"input_features": (2, 80, 40), "labels": (2, 16)},
    ),
}


@pytest.fixture
def config(tmp_path):
    """Writes a config into a folder, and gives the reference to it."""

    def written(settings):
        (tmp_path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
        return f"hf:{tmp_path}"

    return written


@pytest.mark.parametrize("name", CONFIGS)
def test_inputs_and_labels_are_of_the_shapes_that_the_config_says_and_what_is_predicted_is_measured(config, name):
    settings, shapes = CONFIGS[name]
    dry, real = (load_config(config(settings), Sizes(2, 16), dry=dry) for dry in (True, False))
    assert {key: tuple(value.shape) for key, value in dry.kwargs.items()} == shapes
    assert all(parameter.is_meta for parameter in dry.module.parameters())
    assert dry.module.training
    predicted = bridge.profile(dry.module, kwargs=dry.kwargs, dry=True, modes=["full"]).runs[0]
    report = bridge.profile(real.module, kwargs=real.kwargs, modes=["full"], rounds=1)
    measured = report.runs[0]
    assert (predicted.saved_bytes, predicted.predicted_peak_bytes) == (
        measured.saved_bytes,
        measured.measured_peak_bytes,
    )
    has_loss = any(key in shapes for key in ("labels", "start_positions"))
    assert (report.profile.data["loss"] == "the output's own loss") == has_loss


def test_a_model_that_is_made_without_memory_takes_on_a_card_what_a_real_one_takes(config):
    steps = []
    for dry in (True, False):
        loaded = load_config(config(_GPT2), Sizes(2, 16), dry=dry)
        options = {"kwargs": loaded.kwargs, "modes": ["full"], "dry": True, "optimizer": torch.optim.AdamW}
        steps.append(bridge.profile(loaded.module, **options, device="cuda:a100").device)
    assert steps[0] == steps[1]


def test_the_configs_dtype_is_taken_unless_another_is_given(config):
    reference = config({**_GPT2, "dtype": "bfloat16"})
    assert load_config(reference, Sizes(), dry=True).module.dtype is torch.bfloat16
    assert load_config(reference, Sizes(), dry=True, dtype=torch.float16).module.dtype is torch.float16


def test_settings_of_the_config_can_be_changed_and_no_keys_are_cached_unless_asked_for(config):
    reference = config(_GPT2)
    changed = load_config(reference, Sizes(1, 100), dry=True, changes={"n_layer": "3", "n_positions": "128"})
    assert len(changed.module.transformer.h) == 3
    assert not changed.module.config.use_cache
    assert load_config(reference, Sizes(), dry=True, changes={"use_cache": "true"}).module.config.use_cache


def test_a_config_is_found_by_its_file_its_folder_and_its_name_in_the_cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    snapshot = tmp_path / "models--some--model" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--some--model" / "refs").mkdir()
    (tmp_path / "models--some--model" / "refs" / "main").write_text("0123")
    (snapshot / "config.json").write_text(json.dumps(_GPT2), encoding="utf-8")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for reference in (snapshot, snapshot / "config.json", "some/model"):
        assert load_config(f"hf:{reference}", Sizes(1, 8), dry=True).data["sequence"] == 8


def test_code_beside_a_config_is_never_run(tmp_path, config):
    (tmp_path / "modeling.py").write_text("raise SystemExit('it was run')", encoding="utf-8")
    own = {"auto_map": {"AutoConfig": "modeling.Config", "AutoModelForCausalLM": "modeling.Model"}}
    load_config(config({**_GPT2, **own}), Sizes(1, 8), dry=True)
    with pytest.raises(UsageError, match="code of its own, which is never run"):
        load_config(config({"model_type": "mine", **own}), Sizes(1, 8), dry=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "gpt9"}, "its model_type is 'gpt9'.*Write a factory"),
        ({}, "it has no model_type"),
        ([], "no settings by name"),
        ({**_GPT2, "architectures": ["AutoConfig"]}, "has no AutoConfig"),
        ({**_GPT2, "architectures": ["BertModel"]}, "has no BertModel of a GPT2Config"),
        ({**_GPT2, "n_layer": "many"}, "is no GPT2Config"),
    ],
)
def test_what_is_no_config_of_a_model_is_refused(config, settings, message):
    with pytest.raises(UsageError, match=message):
        load_config(config(settings), Sizes(), dry=True)


def refused(capsys, *arguments):
    code = main(["torch", *arguments, "--dry"])
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return code, " ".join(said.split())


def test_a_name_that_is_not_in_the_cache_is_not_downloaded(tmp_path, monkeypatch, capsys):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    code, said = refused(capsys, "hf:some/model")
    assert code == 2
    assert "nothing is downloaded. Fetch it with `hf download NAME config.json`" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sequence", "100"], "positions for 64 tokens; write --arg max_position_embeddings=100"),
        (["--arg", "layers=3"], "there is no setting 'layers'"),
        (["--input", "2x3"], "takes its inputs by name: write NAME=2x3:float32 with one of input_ids"),
        (["--lora", "rank=3"], "write it as r=16,target=q_proj,v_proj"),
        (["--lora", "r=0"], "whole numbers from 1 on"),
        (["--find", "batch"], "--find batch is for a card"),
    ],
)
def test_options_that_a_config_can_not_follow_are_refused(config, capsys, arguments, message):
    code, said = refused(capsys, config(_GPT2), *arguments)
    assert code == 2
    assert message in said


def test_the_report_says_what_was_made(config, capsys):
    reference = config(_GPT2)
    arguments = ["--batch", "4", "--sequence", "32", "--device", "cuda:h100", "--optimizer", "adamw", "--amp", "bf16"]
    assert main(["torch", reference, *arguments, "--dry", "--mode", "full", "--json", "-"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["profile"]["model"]["name"] == "GPT2LMHeadModel"
    assert report["profile"]["data"] | {"loss": None} == {
        "batch": 4,
        "sequence": 32,
        "inputs": ["input_ids=4x32:int64", "labels=4x32:int64"],
        "loss": None,
        "autocast": "bfloat16",
    }
    assert report["device"]["steady"]["reserved_peak_bytes"] > 0


def test_inputs_by_name_are_added(config):
    from memback.bridges.torch.recording.inputs import parse_inputs

    mask = parse_inputs(["attention_mask=2x16:int64=1"])
    loaded = load_config(config(_GPT2), Sizes(2, 16), mask, dry=True)
    assert loaded.kwargs["attention_mask"].all()
    assert "attention_mask" in inspect.signature(type(loaded.module).forward).parameters


def test_adapters_are_trained_in_the_place_of_the_parameters(config, capsys):
    pytest.importorskip("peft")
    arguments = ["--device", "cuda:h100", "--optimizer", "adamw", "--dry", "--mode", "full", "--json", "-"]
    assert main(["torch", config(_GPT2), "--lora", "r=4,alpha=8,target=c_attn,c_fc", *arguments]) == 0
    report = json.loads(capsys.readouterr().out)
    adapters = 2 * (4 * (32 + 96) + 4 * (32 + 128)) * 4
    assert report["runs"][0]["gradient_bytes"] == adapters
    assert report["arguments"]["optimizer_bytes"] == 2 * adapters
    assert report["profile"]["model"]["lora"] == "r=4,alpha=8,target=c_attn,c_fc"
    assert report["profile"]["model"]["name"] == "GPT2LMHeadModel with LoRA"


def test_the_largest_batch_fits_and_the_next_does_not(config, capsys):
    settings = {**_GPT2, "n_embd": 256, "vocab_size": 50_000, "n_positions": 1024}
    arguments = ["--device", "cuda:t4", "--optimizer", "adamw", "--dry", "--find", "batch", "--json", "-"]
    assert main(["torch", config(settings), *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    of = {trial["size"]: trial for trial in found["trials"]}
    assert of[found["size"]]["fits"]
    assert not of[found["size"] + 1]["fits"]
    assert of[found["size"]]["needed_bytes"] == of[found["size"]]["steady_reserved_peak_bytes"] + found["context_bytes"]


def test_the_longest_sequence_is_no_longer_than_the_model_takes(config, capsys):
    assert main(["torch", config(_GPT2), "--device", "cuda:h200", "--dry", "--find", "sequence"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "The largest sequence that fits on cuda:h200 is 64:" in out
    assert "No more, because of the model: --sequence 65: the config has positions for 64 tokens" in out


README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


EXAMPLES = README.split("$ memback torch hf:config.json")[1:]


@pytest.fixture
def readme_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("config.json").write_text(README.split("$ echo '")[1].split("'")[0], encoding="utf-8")


def test_the_plan_of_the_readme_is_that_of_a_run(readme_config, capsys):
    example = EXAMPLES[1]
    assert main(["torch", "hf:config.json", *example.splitlines()[0].split(), "--mode", "full"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    for sentence in re.split(r"(?<=\.)\s+(?=[A-Z])", " ".join(example.split("```text\n")[1].split("```")[0].split())):
        assert sentence in words


def test_the_figures_of_the_readme_are_those_of_a_run(readme_config, capsys):
    example = EXAMPLES[0]
    arguments = example.splitlines()[0].split()
    assert main(["torch", "hf:config.json", *arguments, "--mode", "full", "-o", "report.txt"]) == 0
    shown = Path("report.txt").read_text(encoding="utf-8")
    text = example.split("```text\n")[1].split("```")[0]
    sentences, table = text.split("\n\n")
    words = " ".join(shown.split())
    for sentence in re.split(r"(?<=\.)\s+(?=[A-Z])", " ".join(sentences.split())):
        assert sentence in words
    numbers = [" ".join(line.split()[:-1]) for line in table.splitlines()[2:-2]]
    assert len(numbers) == 7
    for row in numbers:
        assert row in words, row
    assert " ".join(table.splitlines()[-1].split()) in words
