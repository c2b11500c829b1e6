"""Settings from defaults, a TOML file and flags."""

import pytest

from nanochat.errors import UsageError
from nanochat.train.config import TrainConfig, build
from nanochat.train.settings import expand, read_toml


@pytest.fixture
def toml(tmp_path):
    def read(text):
        path = tmp_path / "run.toml"
        path.write_text(text)
        return read_toml(str(path), TrainConfig)

    return read


def test_flags_win_over_the_file_and_the_file_over_defaults(toml):
    file = toml('depth = 4\nmatrix-lr = 1\nsample_prompts = ["a", "b"]\n')
    config = build(file, expand({"depth": 6}, "the command line"))
    assert (config.depth, config.matrix_lr, config.head_dim) == (6, 1.0, 128)
    assert config.sample_prompts == ("a", "b")


def test_shorthands_work_in_a_file_and_yield_to_flags(toml):
    file = toml('kernel = "current"\nno_compile = true\nfp8 = false\nresume = 100\n')
    config = build(file, expand({}, "the command line"))
    assert (config.loss, config.compile, config.quantization) == ("torch", False, "auto")
    assert config.resume == "100"
    assert build(file, expand({"loss": "liger"}, "the command line")).loss == "liger"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dept = 4", "Did you mean 'depth'"),
        ("depth = 4.5", "'depth'"),
        ('depth = "4"', "a whole number"),
        ("depth = true", "a whole number"),
        ("compile = 1", "true or false"),
        ('sample_prompts = "a"', "a list of str"),
        ("depth = ", "not valid TOML"),
        ("warmup-steps = 1\nwarmup_steps = 2", "twice"),
        ('kernel = "cce"\nloss = "liger"', "contradict"),
    ],
)
def test_a_wrong_file_is_explained(toml, text, message):
    with pytest.raises(UsageError, match=message):
        toml(text)


def test_a_missing_file_is_explained():
    with pytest.raises(UsageError, match=r"cannot read the settings in nowhere\.toml"):
        read_toml("nowhere.toml", TrainConfig)


@pytest.mark.parametrize(
    ("given", "setting", "value"),
    [
        ({"kernel": "cce"}, "loss", "cce"),
        ({"kernel": "current", "loss": "torch"}, "loss", "torch"),
        ({"device_type": "cpu"}, "device", "cpu"),
        ({"device_type": ""}, "device", "auto"),
        ({"fp8": True}, "quantization", "fp8"),
        ({"fp8": True, "fp8_recipe": "rowwise"}, "quantization", "fp8-rowwise"),
        ({"xla_flash_attn": True}, "attention", "xla-flash"),
        ({"no_compile": True}, "compile", False),
        ({"resume_from_step": "-1"}, "resume", ""),
        ({"resume_from_step": "-2"}, "resume", "auto"),
        ({"resume_from_step": "40"}, "resume", "40"),
        ({"model_tag": "d8"}, "output", "runs/d8"),
    ],
)
def test_what_shorthands_stand_for(given, setting, value):
    assert getattr(build(expand(given, "the command line")), setting) == value


@pytest.mark.parametrize(
    "given",
    [
        {"kernel": "cce", "loss": "liger"},
        {"fp8": True, "quantization": "none"},
        {"xla_flash_attn": True, "attention": "sdpa"},
        {"compile": True, "no_compile": True},
    ],
)
def test_contradictions_are_refused(given):
    with pytest.raises(UsageError, match="contradict"):
        expand(given, "the command line")


@pytest.mark.parametrize(
    "setting",
    [
        {"depth": 0},
        {"num_iterations": 0},
        {"total_batch_size": -2},
        {"warmdown_ratio": 1.5},
        {"matrix_lr": float("nan")},
        {"dtype": "float16"},
        {"dtype": "int3"},
        {"long_documents": "drop"},
        {"num_iterations": -1, "target_param_data_ratio": -1.0},
    ],
)
def test_values_that_cannot_train_are_refused(setting):
    with pytest.raises(UsageError):
        build(setting)


def test_no_data_folder_names_the_flag_and_the_variable(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NANOCHAT_DATA_DIR", raising=False)
    with pytest.raises(UsageError, match=r"--data-dir.*NANOCHAT_DATA_DIR"):
        TrainConfig().data_path()
    monkeypatch.setenv("NANOCHAT_DATA_DIR", str(tmp_path))
    assert TrainConfig().data_path() == tmp_path


def test_no_tokenizer_names_the_command(tmp_path):
    with pytest.raises(UsageError, match="nanochat-tokenizer"):
        TrainConfig(data_dir=str(tmp_path)).tokenizer_path()
