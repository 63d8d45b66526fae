"""Tokenizers by hub name, folder and file: the ids of the library that reads them, or one clear sentence."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import huggingface_hub
import pytest
import sentencepiece
import tokenizers
import transformers
from huggingface_hub.errors import RepositoryNotFoundError
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

import assets
from conftest import needs_assets
from dskd import Kind
from dskd.cli.loading import TokenizerError, load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

TEXT = "Hello wörld!\n\n知识 </s> <pad> "


def merges_of(words: Iterable[str]) -> list[tuple[str, str]]:
    """Merges that make a token of each word, from left to right."""
    pairs = ((word[:end], word[end]) for word in words for end in range(1, len(word)))
    return list(dict.fromkeys(pairs))


def byte_level(*words: str) -> tokenizers.Tokenizer:
    """A byte-level BPE that has these words as tokens, and `</s>`, which it puts at the end of a text."""
    merges = merges_of(word.replace(" ", "Ġ") for word in words)
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)]
    tokenizer = tokenizers.Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["</s>"])
    end = tokenizer.token_to_id("</s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", end)])
    return tokenizer


def sentencepiece_like(*words: str) -> tokenizers.Tokenizer:
    """A BPE with byte fallback and dummy prefix that has these words as tokens, and `</s>`."""
    spellings = [word.replace(" ", "▁") for word in words]
    merges = merges_of(spellings)
    letters = sorted({"▁", *"".join(spellings)})
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = ["<unk>", *fallback, *letters, *(a + b for a, b in merges)]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>"))  # noqa: S106 - no password
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["</s>"])
    return tokenizer


def write_folder(folder: Path, tokenizer: tokenizers.Tokenizer) -> Path:
    """What `save_pretrained` writes: the tokenizer, and which tokens have roles."""
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("loading") / "tiny", byte_level("Hello", " w", "rld"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model, trained here on a little text."""
    path = tmp_path_factory.mktemp("model") / "tiny.model"
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["Hello world", "the cat sat on the mat"] * 20),
            model_writer=file,
            vocab_size=300,
            model_type="bpe",
            byte_fallback=True,
            hard_vocab_limit=False,
            minloglevel=2,
        )
    return path


def test_a_folder_is_read_by_transformers(folder: Path) -> None:
    loaded = load_tokenizer(str(folder))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    expected = tokenizer.encode(TEXT, add_special_tokens=False, split_special_tokens=True)
    assert loaded.encode(TEXT) == expected
    assert loaded.spellings(expected) == tokenizer.convert_ids_to_tokens(expected)
    assert (loaded.name, loaded.eos) == ("tiny", "</s>")
    assert loaded.vocabulary.roles == {tokenizer.eos_token_id: {"eos", "</s>"}}


def test_a_json_file_is_read_by_tokenizers_and_names_no_roles(folder: Path) -> None:
    loaded = load_tokenizer(str(folder / "tokenizer.json"))
    assert loaded.encode(TEXT) == load_tokenizer(str(folder)).encode(TEXT)
    assert (loaded.name, loaded.eos) == ("tiny", None)
    assert list(loaded.vocabulary.roles.values()) == [{"</s>"}]


def test_a_model_file_is_read_by_sentencepiece(model: Path) -> None:
    loaded = load_tokenizer(str(model))
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    assert loaded.encode(TEXT) == processor.encode(TEXT)
    assert loaded.spellings(loaded.encode(TEXT)) == processor.encode(TEXT, out_type=str)
    assert (loaded.name, loaded.eos) == ("tiny.model", "</s>")


def test_a_folder_with_a_slow_tokenizer_is_read_by_transformers(tmp_path: Path, model: Path) -> None:
    tokenizer = transformers.PLBartTokenizer(vocab_file=str(model))
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    ids = loaded.encode("Hello world</s>")
    assert ids == [token_id + 1 for token_id in load_tokenizer(str(model)).encode("Hello world</s>")]
    text = b"".join(loaded.vocabulary.token_bytes(token_id) or b"" for token_id in ids)
    assert text == b" Hello world</s>"
    assert loaded.spellings(ids) == tokenizer.convert_ids_to_tokens(ids)
    assert loaded.eos == "</s>"


@pytest.mark.parametrize("file", ["tokenizer.model", "tokenizer.model.v1", "spiece.model"])
def test_a_folder_with_a_model_alone_is_read_by_sentencepiece(tmp_path: Path, model: Path, file: str) -> None:
    shutil.copy(model, tmp_path / file)
    assert load_tokenizer(str(tmp_path)).encode(TEXT) == load_tokenizer(str(model)).encode(TEXT)


def test_a_batch_is_its_texts_one_by_one(folder: Path, model: Path) -> None:
    texts = [TEXT, "", "Hello", "\x00\x1b"]
    for path in (folder, model):
        loaded = load_tokenizer(str(path))
        assert loaded.encode_batch(texts) == [loaded.encode(text) for text in texts]
        assert loaded.encode_batch([]) == []


def test_special_tokens_in_a_text_are_text_unless_asked_for(folder: Path) -> None:
    as_text, as_special = (load_tokenizer(str(folder), parse_special=parse) for parse in (False, True))
    text_ids, special_ids = as_text.encode("a</s>"), as_special.encode("a</s>")
    assert as_text.spellings(text_ids) == ["a", "<", "/", "s", ">"]
    assert as_special.spellings(special_ids) == ["a", "</s>"]
    assert as_text.vocabulary.kind(special_ids[-1]) == Kind.SPECIAL


def test_what_a_tokenizer_file_says_of_length_does_not_cut_or_fill_rows(tmp_path: Path) -> None:
    tokenizer = byte_level("Hello")
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=9)
    loaded = load_tokenizer(str(write_folder(tmp_path / "cut", tokenizer)))
    assert [len(ids) for ids in loaded.encode_batch(["Hello", "abcdef"])] == [1, 6]


@pytest.mark.parametrize("name", ["deepseek-v3", "gpt2", "llama2", "mistral-v1", "phi3", "qwen2"])
def test_the_bytes_of_a_real_tokenizers_ids_are_the_text(name: str) -> None:
    loaded = load_tokenizer(str(needs_assets(lambda: assets.tokenizer(name))))
    literals = [loaded.spellings([token_id])[0] for token_id in list(loaded.vocabulary.roles)[:20]]
    text = f"Hello wörld!\n\n知识 🚀 and {' and '.join(literals)}"
    found = b"".join(loaded.vocabulary.token_bytes(token_id) or b"" for token_id in loaded.encode(text))
    assert (found.removeprefix(b" ") if loaded.vocabulary.dummy_prefix else found) == text.encode()
    assert loaded.eos in literals
    assert loaded.name == name


def test_loading_prints_nothing(folder: Path) -> None:
    run = in_a_process(folder, {})
    assert (run.stdout, run.stderr, run.returncode) == ("", "", 0)


def in_a_process(name: Path | str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    code = "import sys, dskd.cli.loading; dskd.cli.loading.load_tokenizer(sys.argv[1])"
    return subprocess.run(
        [sys.executable, "-c", code, str(name)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


# ---- What cannot be read ---------------------------------------------------------------------------------


def refusal(name: Path | str, **options: Any) -> str:
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(str(name), **options)
    return str(caught.value)


def test_an_empty_folder(tmp_path: Path) -> None:
    assert "has neither tokenizer.json nor tokenizer.model; name a folder that has one" in refusal(tmp_path)


def test_a_folder_with_several_models(tmp_path: Path) -> None:
    for name in ("a.model", "b.model"):
        (tmp_path / name).touch()
    assert "has several models: a.model, b.model; name one of these files" in refusal(tmp_path)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    assert "is neither a tokenizer.json (*.json) nor a SentencePiece model" in refusal(
        tmp_path / "model.gguf"
    )


def test_a_rank_file_which_cannot_encode(tmp_path: Path) -> None:
    (tmp_path / "cl100k.tiktoken").write_text("IQ== 0\n", encoding="utf-8")
    assert "only dskd.Vocabulary.from_file reads it" in refusal(tmp_path / "cl100k.tiktoken")


def test_a_tekken_json_is_called_a_rank_file_by_itself_and_in_its_folder() -> None:
    folder = needs_assets(lambda: assets.tokenizer("tekken"))
    message = (
        f"{folder / 'tekken.json'} is a rank file and no tokenizer.json; a rank file says nothing of how"
    )
    for name in (folder, folder / "tekken.json"):
        assert refusal(name).startswith(message)


def test_a_tekken_json_is_told_by_what_is_in_it(tmp_path: Path) -> None:
    config = {"default_num_special_tokens": 1, "default_vocab_size": 2}
    vocab = [{"rank": 0, "token_bytes": "YQ==", "token_str": "a"}]
    (tmp_path / "other.json").write_text(json.dumps({"config": config, "vocab": vocab}), encoding="utf-8")
    assert "other.json is a rank file and no tokenizer.json" in refusal(tmp_path / "other.json")


def test_a_json_file_that_is_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert "config.json is no tokenizer.json that tokenizers can read:" in refusal(tmp_path / "config.json")


def test_a_folder_whose_tokenizer_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    assert f"transformers cannot read the tokenizer of {tmp_path}:" in refusal(tmp_path)


def test_a_model_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_text("IQ== 0\n", encoding="utf-8")
    assert "is no SentencePiece model: " in refusal(tmp_path)


def test_a_tokenizer_that_cannot_be_read_exactly(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "words", tokenizers.Tokenizer(models.WordPiece({"a": 0, "</s>": 1})))
    assert refusal(folder).startswith("words: this WordPiece tokenizer has no decoder")


def test_a_sentencepiece_model_reads_no_special_tokens(model: Path) -> None:
    assert "never reads special tokens from text" in refusal(model, parse_special=True)


@pytest.mark.parametrize("name", ["./nothing", "a/b/c", "tokenizer.json", "a name", "", "~/nothing-here"])
def test_what_is_no_file_and_no_hub_name(name: str) -> None:
    assert refusal(name) == f"there is no file or folder {name}, and a hub name is OWNER/NAME or NAME"


def test_a_library_that_is_not_installed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ImportError, match="sentencepiece"):
        load_tokenizer(str(model))


# ---- The hub, without one --------------------------------------------------------------------------------


def answer_with(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def model_info(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)


def test_a_hub_out_of_reach_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(ConnectionError("Name or service not known\nmore"), monkeypatch)
    assert refusal("nobody/nothing") == (
        "there is no file or folder nobody/nothing here, the hub is out of reach (Name or service not known) "
        "and never gave nobody/nothing before; name a folder with tokenizer.json, or a *.model file"
    )


def test_a_model_that_the_hub_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    error = RepositoryNotFoundError.__new__(RepositoryNotFoundError)  # its __init__ wants an HTTP response
    answer_with(error, monkeypatch)
    assert "no model of that name on the hub; if it is private, log in: hf auth login" in refusal(
        "nobody/nothing"
    )


def test_what_was_downloaded_is_used_without_a_network(folder: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--nobody--tiny"
    shutil.copytree(folder, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40, encoding="utf-8")
    environment = {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    run = in_a_process("nobody/tiny", environment)
    assert (run.stdout, run.stderr, run.returncode) == ("", "", 0)
    assert "the hub is out of reach" in in_a_process("nobody/other", environment).stderr
