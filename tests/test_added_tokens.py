"""Dummy prefixes behind added tokens, as real tokenizers write them."""

from __future__ import annotations

import pytest
import tokenizers

from dskd import Vocabulary
from sides import Side, align, in_lists

LETTERS = ["▁", *"ABCabcSoYes.", "\n"]
"""Of a tokenizer that has words of one letter."""


def spelled(kind: str) -> tokenizers.Tokenizer:
    """A tokenizer that writes dummy prefixes in one of the ways that there are."""
    model = tokenizers.models.BPE(vocab={letter: at for at, letter in enumerate(LETTERS)}, merges=[])
    tokenizer = tokenizers.Tokenizer(model)
    normalizers, decoders = tokenizers.normalizers, tokenizers.decoders
    if kind == "prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    else:
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme=kind)
        tokenizer.decoder = decoders.Metaspace(prepend_scheme=kind)
    tokenizer.add_tokens([tokenizers.AddedToken(tag, normalized=False) for tag in ("<t>", "</t>")])
    return tokenizer


@pytest.mark.parametrize("kind", ["prepend", "always", "first", "never"])
@pytest.mark.parametrize(
    "text", ["<t>So</t>Yes", "a <t>So</t>Yes.", "a<t> So </t> Yes", "<t></t>a", "a <t>\n</t>\nYes", "<t>  So"]
)
def test_what_a_tokenizer_writes_behind_added_tokens_is_the_text_of_the_other_side(
    kind: str, text: str
) -> None:
    tokenizer = spelled(kind)
    plain = Vocabulary.from_bytes([bytes([byte]) for byte in range(256)])
    ids = tokenizer.encode(text).ids
    for flipped in (False, True):
        sides = [Side(plain, list(text.encode())), Side(Vocabulary.from_tokenizer(tokenizer), ids)]
        found = in_lists(align(*(sides[::-1] if flipped else sides)))
        assert found.differences == []
        assert found.counts["chunk_bytes"] == len(text.encode())


def test_an_added_token_has_the_dummy_prefix_with_which_a_normalizer_spells_it() -> None:
    tokenizer = spelled("prepend")
    tokenizer.add_tokens(["<n>"])
    ids = tokenizer.encode("a <n>So").ids
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    text = b"".join(vocabulary.token_bytes(token_id) or b"" for token_id in ids)
    assert text.decode().removeprefix(" ") == tokenizer.decode(ids)
