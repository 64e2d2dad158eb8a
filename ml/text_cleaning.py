"""From a document's bytes to clean text: decoding, cleaning and masking, each in time that grows with the length alone.

Every pattern here either has one way to match or is bounded; nothing that a document holds makes one of them go back and forth.
"""

from __future__ import annotations

import codecs
import html
import re
import unicodedata
from collections.abc import Iterator

LOOK_BYTES = 64 * 2**10
"""Of a file in an old encoding so much is looked at to tell which; a rule of the file alone."""

ENCODINGS = ("cp1252", "cp1250", "cp1251", "koi8_r", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257")
ENCODINGS += ("gb18030", "big5", "cp932", "euc_jp", "cp949", "cp874")
"""The encodings considered, by how common they are on the web: of those that fit a few letters equally well the first is taken."""

BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"))
BOMS += ((codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # after UTF-32, which starts alike

NOT_CONTROL = bytes({*range(0x20, 0x100), *b"\t\n\v\f\r\b\x1b"} - {0x7F})
CONTROL_SHARE = 20
"""One control character in so many bytes is more than any text has, while noise has two."""

MARKS = 30
"""Most combining marks in a row (the Stream-Safe Text Format, UAX 15): normalising a run takes the square of its length."""

NEWLINES = re.compile("\r\n?|[\v\f\x1c-\x1e\x85\u2028\u2029]")
# Controls, surrogates, joiners, direction marks, fillers, variation selectors and tags; not Cf as a whole, which holds visible signs.
INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ud800-\udfff\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
MARK_RUNS = re.compile(rf"[^\w\s\x00-\x7f]{{{MARKS + 1},}}")
SPACES, AROUND_LINES, BLANK_LINES = re.compile(r"[^\S\n]+"), re.compile(r" ?\n ?"), re.compile(r"\n{3,}")

HIDDEN = ((r"<!--", r"-->"), (r"<script\b", r"</script\s*>"), (r"<style\b", r"</style\s*>"))
HIDDEN = tuple((re.compile(opening, re.I), re.compile(closing, re.I)) for opening, closing in HIDDEN)
TAG = re.compile(r"""<(?:[!?]|/?([a-z][a-z0-9]*+)(?=[\s/>]))(?:[^<>"']|"[^"<]*"|'[^'<]*'|["'])*+>""", re.I)  # ends before the next "<"
BLOCKS = """address article aside blockquote body br caption center dd details dialog div dl dt fieldset figcaption figure footer form h1 h2 h3
h4 h5 h6 head header hr html legend li main menu nav ol optgroup option p pre section summary table tbody td tfoot th thead title tr ul"""
INLINE = """a abbr acronym area audio b base basefont bdi bdo big button canvas cite code col colgroup data datalist del dfn em embed font frame
frameset i iframe img input ins kbd label link map mark meta meter noscript object output param picture progress q rp rt ruby s samp script select
slot small source span strike strong style sub sup svg template textarea time track tt u var video wbr"""
TAGS = dict.fromkeys(INLINE.split(), "") | dict.fromkeys(BLOCKS.split(), "\n")
ENTITY = re.compile(
    r"&(?:#[0-9]{1,7}|#x[0-9a-f]{1,6}|[a-z][a-z0-9]{1,31});", re.I
)  # no longer numbers: int() takes the square of their length

EMAIL = re.compile(r"(?<![\w.%+-])[\w.%+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}(?![\w@])")
DIGITS = re.compile(r"(?<![\w.,+])(?=[0-9 -]{13})[0-9]++(?:[ -][0-9]++)*(?!\w|[.,][0-9])")
CARDS = ((4, 4, 4, 4), (4, 6, 5), (4, 6, 4), (4, 4, 4, 4, 3), *((solid,) for solid in range(13, 20)))
PHONE = re.compile(
    r"(?<![\w+./,$€£-])(?<![0-9]:)(?:"
    r"\+[1-9](?:[ .()/-]{0,2}[0-9]){8,14}"  # +44 20 7946 0958
    r"|(?:1[ .-])?(?:\([2-9][0-9]{2}\) ?[0-9]{3}[ .-]|[2-9][0-9]{2}[.-][0-9]{3}[.-])[0-9]{4}"  # (212) 555-0123
    r"|(?<![0-9] )(?:1 )?[2-9][0-9]{2} [0-9]{3} [0-9]{4}"  # 212 555 0123, but not in a row of numbers
    r"|(?<![0-9] )(?:\(0[0-9]{1,4}\) ?|0[0-9]{1,4}[ /-])[0-9]{2,8}(?:[ -][0-9]{2,4}){0,4}"  # 020 7946 0958, 06 12 34 56 78
    r")(?![0-9]|[.,/:-][0-9])"
)


class Unreadable(Exception):
    """The document cannot be used; the message is the reason, in words for the quarantine's table."""


def decode_text(data: bytes, max_bytes: int) -> str:
    """The text of a file: by its byte order mark, as UTF-8, or in the likeliest of ENCODINGS; raises Unreadable."""
    if len(data) > max_bytes:
        raise Unreadable(f"{len(data):,} bytes, above the limit of {max_bytes:,}")
    for mark, encoding in BOMS:
        if data.startswith(mark):
            try:
                return data.decode(encoding).removeprefix("\ufeff")
            except UnicodeDecodeError as error:
                raise Unreadable(f"damaged {encoding.upper()} at byte {error.start:,}") from None
    if b"\0" in data or len(data.translate(None, NOT_CONTROL)) * CONTROL_SHARE > len(data):
        raise Unreadable("binary, not text")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return _damaged_utf8(data) or _old_encoding(data)


def clean(text: str, *, form: str = "NFC", markup: bool, lowercase: bool) -> str:
    """The text in Unicode's normal `form` ("NFC", "NFKC" or "none"), without what cannot be seen, single-spaced; paragraphs stay.

    `markup` takes HTML's tags away and turns entities into what they stand for. Cleaning what is clean changes nothing, except
    that each time one layer of markup is undone.
    """
    if markup and "<" in text:
        for opening, closing in HIDDEN:
            text = "".join(_outside(text, opening, closing))
        text = TAG.sub(_tag, text)
    if markup and "&" in text:
        text = ENTITY.sub(lambda entity: html.unescape(entity[0]), text)
    text = INVISIBLE.sub("", NEWLINES.sub("\n", text))
    if not text.isascii():
        text = _normalised(text, form)
    if lowercase:
        text = text.lower()
        text = text if text.isascii() else _normalised(text, form)
    return BLANK_LINES.sub("\n\n", AROUND_LINES.sub("\n", SPACES.sub(" ", text))).strip()


def mask_private(text: str) -> tuple[str, dict[str, int]]:
    """The text with e-mail addresses, payment cards and phone numbers replaced by [EMAIL], [CARD], [PHONE]; and how many of each.

    What may as well be something else (a plain number, a date, a price, an address of a computer) stays.
    """
    text, emails = EMAIL.subn("[EMAIL]", text) if "@" in text else (text, 0)
    cards = phones = 0

    def card(digits: re.Match[str]) -> str:
        nonlocal cards
        masked, found = _mask_cards(digits[0])
        cards += found
        return masked

    def phone(number: re.Match[str]) -> str:
        nonlocal phones
        if not _is_phone(number[0]):
            return number[0]
        phones += 1
        return "[PHONE]"

    text = PHONE.sub(phone, DIGITS.sub(card, text))
    return text, {"email": emails, "phone": phones, "card": cards}


def _damaged_utf8(data: bytes) -> str | None:
    """UTF-8 with a bad byte here and there, or cut within a character, is still UTF-8: no other encoding is right by chance."""
    text = data.decode("utf-8", "replace")
    bad = text.count("\ufffd")
    good = len(text) - len(text.encode("ascii", "ignore")) - bad
    return text if good >= 10 * bad else None


def _old_encoding(data: bytes) -> str:
    from charset_normalizer import from_bytes  # few files need it

    head = data[:LOOK_BYTES]
    if len(data) > len(head):  # not within a character of two bytes, the second of which is never one of these
        head = head[: max(head.rfind(b"\n"), head.rfind(b" ")) + 1] or head
    matches = from_bytes(head, cp_isolation=list(ENCODINGS), enable_fallback=False)
    if not matches:
        raise Unreadable("text in no known encoding")
    best = min((match.chaos, -match.coherence) for match in matches)
    equal = {name for match in matches if (match.chaos, -match.coherence) == best for name in match.could_be_from_charset}
    return data.decode(min(equal, key=ENCODINGS.index), "replace")


def _outside(text: str, opening: re.Pattern[str], closing: re.Pattern[str]) -> Iterator[str]:
    position = 0
    while (start := opening.search(text, position)) and (end := closing.search(text, start.end())):
        yield text[position : start.start()]
        position = end.end()
    yield text[position:]


def _tag(tag: re.Match[str]) -> str:
    """What stands in a tag's place: a line's end, nothing, or itself where HTML has no such element ("List<String>")."""
    return "" if tag[1] is None else TAGS.get(tag[1].lower(), tag[0])


def _normalised(text: str, form: str) -> str:
    text = MARK_RUNS.sub(_few_marks, text)
    if form != "none":
        text = MARK_RUNS.sub(_few_marks, unicodedata.normalize(form, text))
    return text


def _few_marks(run: re.Match[str]) -> str:
    return "".join(character for place, character in enumerate(run[0]) if place < MARKS or not unicodedata.combining(character))


def _mask_cards(run: str) -> tuple[str, int]:
    """Numbers separated by a blank or a dash each, with every stretch that is a card masked: the year before it stays."""
    parts = re.split("([ -])", run)
    groups, done, place, found = parts[::2], [], 0, 0
    while place < len(groups):
        shape = next((shape for shape in CARDS if _is_card(groups[place : place + len(shape)], shape)), None)
        taken = len(shape) if shape else 1
        found += shape is not None
        done += ["[CARD]" if shape else groups[place], *parts[2 * (place + taken) - 1 : 2 * (place + taken)]]
        place += taken
    return "".join(done), found


def _is_card(groups: list[str], shape: tuple[int, ...]) -> bool:
    """Whether the digits pass Luhn's check and start as cards do (ISO/IEC 7812: 2 to 6), unlike times in ms and EANs of books."""
    if tuple(map(len, groups)) != shape or groups[0][0] not in "23456":
        return False
    digits = [int(digit) for group in groups for digit in group][::-1]
    return (sum(digits[::2]) + sum(sum(divmod(2 * digit, 10)) for digit in digits[1::2])) % 10 == 0


def _is_phone(number: str) -> bool:
    digits = sum(character.isdigit() for character in number)
    if number.startswith("+"):  # one point makes it a decimal number: a coordinate, a change in per cent
        return number.count(".") != 1 and (digits == 11 if number[1] == "1" else digits >= 9)
    return not number.startswith(("0", "(0")) or 9 <= digits <= 11
