"""Documents become clean text, whatever their bytes; and nothing in them makes that slow."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.text_cleaning import Unreadable, clean, decode_text, mask_private

FORMS = ("NFC", "NFKC", "none")
LONG = 10**9
# Letters that normal forms, case, markup and line ends treat in their own way, beside any others.
TEXT = st.text(
    st.sampled_from("a Bİßﬁ①Å\u0301\u0327\u0344\u200b\ufeff\xa0\t\r\n\u2028\x85\x00\ud800<b>/&amp;lt\"'!-") | st.characters(), max_size=60
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_unicode_is_read_in_all_its_encodings(encoding):
    assert decode_text("Größe, 日本 ☃".encode(encoding), LONG) == "Größe, 日本 ☃"


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", "I don’t know — a “really” good café"),
        ("latin-1", "El niño comió piñas y jamón; ¿qué más?"),
        ("cp1250", "Zażółć gęślą jaźń, príliš žluťoučký kůň"),
        ("cp1251", "Привет, как дела? Всё хорошо, спасибо."),
        ("koi8-r", "Привет, как дела? Всё хорошо, спасибо."),
        ("gb18030", "这是一个中文文本，用来测试编码检测。"),
        ("shift_jis", "これは日本語のテキストです。文字コードを判定します。"),
    ],
)
def test_old_encodings_are_told_apart(encoding, text):
    assert decode_text(text.encode(encoding), LONG) == text
    long = (text + "\n") * 5000
    assert decode_text(long.encode(encoding), LONG) == long


def test_a_damaged_character_does_not_change_the_encoding():
    data = ("Größe und Übermut " * 20).encode()
    assert decode_text(data[:-1] + "ß".encode()[:1], LONG).startswith("Größe und Übermut Größe")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"a\0b", "binary, not text"),
        (bytes(range(1, 256)) * 4, "binary, not text"),
        (b"\xff\xfea", "damaged UTF-16 at byte 2"),
        (b"\xef\xbb\xbf\xff", "damaged UTF-8 at byte"),
        (b"x" * 1001, "1,001 bytes, above the limit of 1,000"),
    ],
)
def test_what_is_no_text_is_refused_with_the_reason(data, reason):
    with pytest.raises(Unreadable, match=reason):
        decode_text(data, 1000 if len(data) == 1001 else LONG)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_text_or_refused(data):
    try:
        clean(decode_text(data, LONG), markup=True, lowercase=True).encode()
    except Unreadable as error:
        assert str(error)


@given(TEXT, st.sampled_from(FORMS), st.booleans())
def test_cleaning_twice_is_cleaning_once(text, form, lowercase):
    once = clean(text, form=form, markup=False, lowercase=lowercase)
    assert clean(once, form=form, markup=False, lowercase=lowercase) == once
    once.encode()  # no half of a surrogate pair is left


@given(TEXT, st.sampled_from(FORMS), st.booleans())
def test_clean_text_has_single_spaces_and_at_most_one_blank_line(text, form, lowercase):
    cleaned = clean(text, form=form, markup=True, lowercase=lowercase)
    assert not any(pair in cleaned for pair in ("  ", " \n", "\n ", "\n\n\n", "\t", "\r", "\0", "\u200b"))
    assert cleaned == cleaned.strip()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a < b and c > d", "a < b and c > d"),
        ("if x<y and y>z: List<String>", "if x<y and y>z: List<String>"),
        ("one<br />two<BR>three", "one\ntwo\nthree"),
        ("<p>One</p><p class='a > b'>T<b>w</b>o</p>", "One\n\nTwo"),
        ("AT&amp;T &lt;b&gt;&nbsp;&#233; ?a=1&copy=2 R&D", "AT&T <b> é ?a=1&copy=2 R&D"),
        ("<!DOCTYPE html><!-- <p> --><script>if (a<b) x()</script><style>p {}</style>text", "text"),
        ("<script> that never ends", "that never ends"),
        ('<a href="open>text</a>', "text"),
    ],
)
def test_markup(text, expected):
    assert clean(text, markup=True, lowercase=False) == expected


def test_normal_forms_case_and_invisible_characters():
    text = "\ufeffE\u0301\u200bTÉ ﬁn\u00ad\u202e ①\x07\t\r\n\r\n\r\n  x"
    assert clean(text, markup=False, lowercase=False) == "ÉTÉ ﬁn ①\n\nx"
    assert clean(text, form="NFKC", markup=False, lowercase=True) == "été fin 1\n\nx"
    assert clean("E\u0301", form="none", markup=False, lowercase=False) == "E\u0301"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Write to john.doe+x@mail.example.co.uk.", "Write to [EMAIL]."),
        ("Call 555-123-4567, (212) 555-0123 or 1-800-555-1234!", "Call [PHONE], [PHONE] or [PHONE]!"),
        ("tel:+4930123456, +44 20 7946 0958, +1 (555) 123-4567", "tel:[PHONE], [PHONE], [PHONE]"),
        ("06 12 34 56 78; 020 7946 0958; 0171/1234567; 212 555 0123", "[PHONE]; [PHONE]; [PHONE]; [PHONE]"),
        ("in 2024 4111 1111 1111 1111 05/27", "in 2024 [CARD] 05/27"),
        ("4111-1111-1111-1111, 378282246310005, 3782 822463 10005", "[CARD], [CARD], [CARD]"),
    ],
)
def test_private_data_are_masked(text, expected):
    masked, counts = mask_private(text)
    assert masked == expected
    assert counts == {kind: expected.count(f"[{kind.upper()}]") for kind in ("email", "phone", "card")}


@pytest.mark.parametrize(
    "text",
    [
        "born in 1984, 1990-1995, 2024-01-02 03:04:05, 01/02/2024, 01-02-2024, 5.11.1955",
        "$1,234,567.89, 100 000 000 000 euros, +100 000 000, $555-666-7777",
        "v1.22.333.4444, 192.168.0.1, 10.0.0.255:8080, user@localhost, @someone",
        "1700000000000, 5551234567, 4111111111111112, 12345678901234567890123",
        "ISBN 978-3-16-148410-0, 0-306-40615-2, 550e8400-e29b-41d4-a716-446655440000",
        "3.141592653589793, +48.858370, 12 15 18 20 33 35 41 4 4 4 4 4 4",
    ],
)
def test_other_numbers_stay(text):
    assert mask_private(text) == (text, {"email": 0, "phone": 0, "card": 0})


@given(st.text())
def test_nothing_is_private_without_digits_and_at_signs(text):
    text = "".join(character for character in text if character not in "@0123456789")
    assert mask_private(text)[0] == text


@given(st.text(st.sampled_from("0123456789 -+().@abc.,:"), max_size=60))
def test_masking_never_raises_and_what_is_masked_stays_so(text):
    masked, counts = mask_private(text)
    assert sum(counts.values()) == sum(masked.count(mask) for mask in ("[EMAIL]", "[PHONE]", "[CARD]"))


UNITS = [
    "<a ",
    '<a "',
    "<a '\"",
    "<",
    "<!--",
    "<script>",
    "<!",
    "&#",
    "&#9",
    "&amp;",
    "\u0301\u0327",
    "a@",
    "a@b.",
    "1 ",
    "1111 ",
    "+1 ",
    "4-",
    "4",
]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("unit", [*UNITS, "(0", "01 ", " \n", "0:", "\u0344", "\U0001f600\u0301"])
def test_no_text_takes_the_square_of_its_length(unit):
    """Were a search to start anew at each place, or marks to be sorted, this would take minutes."""
    masked, _ = mask_private(clean("q" + unit * 150_000, form="NFKC", markup=True, lowercase=True))
    assert masked.startswith("q")


def test_real_reviews(shared_data):
    import pandas as pd

    texts = pd.read_parquet(shared_data / "small" / "imdb" / "test.parquet")["text"].head(300)
    cleaned = [clean(decode_text(text.encode(), LONG), markup=True, lowercase=False) for text in texts]
    assert any("<br />" in text for text in texts)
    assert not any("<br" in text for text in cleaned)
    assert all(0.8 * len(text) < len(new) <= len(text) for text, new in zip(texts, cleaned, strict=True))
