"""Token ids against the reference and transformers, soft scores against the reference."""

import json
import pickle

import numpy as np
import pytest

from tests import REFERENCE_FILES
from unit_jax.data import batching, text
from unit_jax.outputs.labels import answers

REFERENCE = np.load(REFERENCE_FILES / "processing/reference.npz")
DOC = json.loads(str(REFERENCE["doc"]))
WORDS = """[PAD] [UNK] [CLS] [SEP] [MASK] a cat dog ##s sit ##ting on the mat , . ? ! ' - un
##believ ##able cafe 7 ##5 中 文 ( ) [ ] sep""".split()


@pytest.fixture
def vocabulary(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(WORDS) + "\n")
    return path


def reference_id(token: str) -> int:
    """The rule under which the reference's numbers were made."""
    return 1000 + 26 * len(token) + ord(token[0]) - ord("a")


def test_pairs_are_joined_and_cut_like_the_references():
    texts = [
        text.join(
            [reference_id(word) for word in first.split()],
            [reference_id(word) for word in (second or "").split()],
            DOC["text/max_seq_length"],
            101,
            102,
        )
        for first, second in DOC["text/inputs"]
    ]
    ids, mask, segments = batching.pad_texts(texts, DOC["text/max_seq_length"])
    np.testing.assert_array_equal(ids, REFERENCE["text/input_ids"])
    np.testing.assert_array_equal(mask, REFERENCE["text/input_mask"])
    np.testing.assert_array_equal(segments, REFERENCE["text/segment_ids"])
    assert (ids.dtype, mask.dtype, segments.dtype) == (np.int32, np.bool_, np.int32)


def test_join_drops_one_token_at_a_time():
    rng = np.random.default_rng(0)
    for _ in range(500):
        limit = int(rng.integers(6, 14))
        first = rng.integers(10, 99, rng.integers(0, 15)).tolist()
        second = rng.integers(10, 99, rng.integers(0, 15)).tolist()
        a, b = list(first), list(second)
        while len(a) + len(b) > limit - (3 if b else 2):
            (a if len(a) > len(b) else b).pop()
        expected = [1, *a, 2, *b, 2] if second else [1, *a, 2]
        ids, segment = text.join(first, second, limit, 1, 2)
        assert ids.tolist() == expected
        assert segment == len(a) + 2


def test_word_pieces_are_berts(vocabulary):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertTokenizerFast(vocab={word: i for i, word in enumerate(WORDS)})
    ours = text.Tokenizer(vocabulary)
    assert ours.size == len(WORDS)
    first = [
        "The CAT, sitting on the mat.",
        "Café unbelievable 75",
        "dogs' 中文 [SEP] (sep)",
        "x" * 120,
        "a\x00 \t cat\u200b",
        "",
    ]
    second = ["a dog!", "", "don't [MASK] the-cat", "cat", "dogs sitting", "on"]
    expected = [theirs(a, b or None) for a, b in zip(first, second, strict=True)]
    got = ours.encode(first, second, 64)
    assert [ids.tolist() for ids, _ in got] == [e["input_ids"] for e in expected]
    for (ids, start), one in zip(got, expected, strict=True):
        assert one["token_type_ids"] == [0] * start + [1] * (len(ids) - start)
    single = ours.encode(first, None, 64)
    assert [ids.tolist() for ids, _ in single] == [theirs(a)["input_ids"] for a in first]


def test_tokenizer_survives_pickling(vocabulary):
    ours = text.Tokenizer(vocabulary)
    again = pickle.loads(pickle.dumps(ours))
    sentences = ["The cat sitting on [MASK] mat", "unbelievable"]
    for a, b in zip(ours.encode(sentences, None, 9), again.encode(sentences, None, 9), strict=True):
        assert a[0].tolist() == b[0].tolist() and again.size == ours.size


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["[PAD]", "[UNK]", "[CLS]", "cat"], r"lacks \[SEP\]"),
        (["[UNK]", "[PAD]", "[CLS]", "[SEP]"], r"does not start with \[PAD\]"),
    ],
)
def test_unfit_vocabulary_is_an_error(tmp_path, words, message):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(words))
    with pytest.raises(ValueError, match=message):
        text.Tokenizer(path)


def test_soft_scores_are_the_references():
    numbers = {answer: i for i, answer in enumerate(DOC["vqa/vocab"])}
    got = [answers.answer_scores(a, numbers, len(numbers)) for a in DOC["vqa/answers"]]
    np.testing.assert_allclose(np.stack(got), REFERENCE["vqa/scores"], rtol=0, atol=1e-6)


def test_answers_are_normalised():
    assert answers.normalise_answer(" The dog's, REALLY? ") == "the dog 's really"
