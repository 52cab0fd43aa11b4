"""Text to ids and back; sizes that a small corpus does not support."""

import pytest
import torch

from mmspeech.data.text import Tokenizer, TokenizerConfig, normalise, train_tokenizer, words_of_english
from mmspeech.errors import UserError

TEXTS = [
    "Bin blue at F two now",
    "place red by g nine please",
    "set white in  l zero again",
    "lay green with a one soon",
]


@pytest.mark.parametrize("kind", ["unigram", "characters", "words"])
def test_text_comes_back_lower_cased(kind, tmp_path):
    """decode(encode(text)) is the text; saving and loading changes nothing; ids end with </s>."""
    tokenizer = train_tokenizer(TEXTS, TokenizerConfig(kind=kind, size=36 if kind == "unigram" else None))
    assert tokenizer.symbols[:4] == ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.size == tokenizer.size
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert ids[-1] == 2 and 3 not in ids
        assert again.encode(text) == ids
        assert again.decode(ids) == " ".join(text.lower().split())
    assert tokenizer.encode("") == [2]


def test_words_are_numbered_by_frequency():
    tokenizer = train_tokenizer(["two one two", "three two one"], TokenizerConfig(kind="words"))
    assert tokenizer.symbols[4:] == ["▁two", "▁one", "▁three"]
    assert tokenizer.encode("one four") == [5, 3, 2]
    assert tokenizer.decode([5, 3, 2]) == "one <unk>"


@pytest.mark.parametrize(("kind", "size"), [("unigram", 8), ("words", 1000), ("characters", 1000), ("unigram", None)])
def test_impossible_size_names_a_possible_one(kind, size):
    """The size named in the message works."""
    with pytest.raises(UserError, match=r"tokenizer\.size: .*; set (?P<words>at \w+ )?\w+") as caught:
        train_tokenizer(TEXTS, TokenizerConfig(kind=kind, size=size))
    if size is not None:
        possible = int(
            next(word for word in str(caught.value).rpartition("; set ")[2].replace(",", "").split() if word.isdigit())
        )
        assert train_tokenizer(TEXTS, TokenizerConfig(kind=kind, size=possible)).size == possible


@pytest.mark.parametrize("texts", [TEXTS, ["hello there", "you"], ["a"]])
def test_unigrams_are_as_many_as_a_small_text_supports(texts, capsys):
    """A size that is too large says so in one line and gives the largest that fits: one more does not."""
    tokenizer = train_tokenizer(texts, TokenizerConfig(kind="unigram", size=1000))
    size = tokenizer.size
    said = f"tokenizer.size: 1000 unigram pieces, but these texts support {size}; made {size}"
    assert capsys.readouterr().err.splitlines() == [said]
    assert [tokenizer.decode(tokenizer.encode(text)) for text in texts] == [normalise(text) for text in texts]
    assert train_tokenizer(texts, TokenizerConfig(kind="unigram", size=size)).symbols == tokenizer.symbols
    assert capsys.readouterr().err == ""
    assert train_tokenizer(texts, TokenizerConfig(kind="unigram", size=size + 1)).size == size


def test_no_text_is_an_error():
    with pytest.raises(UserError, match="no text to learn from"):
        train_tokenizer(["", " "], TokenizerConfig(kind="words"))


def test_folder_without_tokenizer_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"expected tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_public_models_pieces_are_reproduced(shared):
    """Ids, with their end symbol, and text of the stored SentencePiece model."""
    folder = shared / "reference" / "avhubert"
    state = torch.load(folder / "s2s_base_plain.pt", weights_only=True)["task_state"]
    tokenizer = Tokenizer.from_sentencepiece(bytes(state["s2s_tokenizer"]["sentencepiece_model_proto"].tolist()))
    assert tokenizer.symbols == state["target_dictionary"]["symbols"]
    for case in torch.load(folder / "s2s_base_io.pt", weights_only=True)["tokenizer"]:
        assert tokenizer.encode(case["text"]) == case["ids"].tolist()
        assert tokenizer.decode(case["ids"].tolist()) == case["decoded"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('<s> "WELL," SAID MR. O\u2019NEIL - TWENTY-ONE </s>', "well said mr o'neil twenty one"),
        ("It's the dogs' 'quoted' rock 'n' roll.", "it's the dogs quoted rock n roll"),
        ("<s> I DON 'T THINK IT 'S TEN O 'CLOCK </s>", "i don't think it's ten o'clock"),
        ("U.S. caf\u00e9_bar \u2014 3.5 %", "u s café bar 3 5"),
        ("[laughter] yes {LG} [cross talk]", "yes"),
        ("<s> </s>\n", ""),
        ("...", ""),
    ],
)
def test_lines_of_english_become_words_as_in_transcripts(line, words):
    """Cantab-TEDLIUM's marks and punctuation are gone; what was cleaned stays as it is."""
    assert words_of_english(line) == words == words_of_english(words)
