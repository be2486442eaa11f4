"""What can be wrong inside a text: encoding damage, control tokens, personal data.

Each function gives a short description of what it found, never the text itself: findings are printed in the data docs.
"""

import ipaddress
import re
from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What the bytes 0x80-0xBF, which continue a UTF-8 character, become when they are read as Windows-1252 or Latin-1.
_CONTINUED = bytes(range(0x80, 0xC0)).decode("cp1252", errors="ignore") + "\u0080-\u009f"
# The same without the quotation marks and dashes that may well follow a letter: a closing mark after "Spass" in German.
_UNUSUAL = "".join(mark for mark in _CONTINUED if mark not in "\u2018\u2019\u201c\u201d\u2013\u2014\u2026\u00ab\u00bb")
_DAMAGE = {
    "replacement character": re.compile("\ufffd"),
    "half a surrogate pair": re.compile("[\ud800-\udfff]"),
    "NUL or control character": re.compile("[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f]"),
    "mojibake": re.compile(
        f"[ÂÃ][{_UNUSUAL}\u00ab]"  # Western letters: Ã© for é; Ã« for ë
        f"|â[{_UNUSUAL}][{_CONTINUED}]"  # quotation marks, dashes, arrows
        f"|ï»¿|ð[\u0178\u009f][{_CONTINUED}]"  # a byte-order mark; emoji
        f"|(?:[ÐÑ][{_CONTINUED}]){{3}}"  # Cyrillic
        f"|(?:[ã-é][{_UNUSUAL}][{_CONTINUED}]){{2}}"  # Chinese, Japanese, Korean
    ),
    "C1 control character": re.compile("[\u0080-\u0084\u0086-\u009f]"),
}

_E_MAIL = re.compile(r"[\w.+-]+@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,}\b")
# A phone number shows itself by its + or its grouping; a bare run of digits is an order number, a year, an amount.
_PHONE = re.compile(
    r"(?<![\w.+/-])(?:"
    r"\+\d[\d ()./-]{6,18}\d"  # +49 (0)30 1234567
    r"|(?:1[ .-])?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}"  # (212) 555-0123
    r"|0\d{1,4}[ /-]\d{3,4}[ -]?\d{3,4}"  # 030/1234567
    r"|0\d(?:[ .-]\d{2}){4}"  # 06 12 34 56 78
    r")(?![\w-])(?!\.\d)"
)
_CARD = re.compile(r"(?<![\w-])[2-6]\d{3}(?:[ -]?\d){9,15}(?![\w-])")
_IP_V4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\.?\w)")
_IP_V6 = re.compile(r"(?<![\w:])(?:[0-9A-Fa-f]{0,4}:){3,7}[0-9A-Fa-f]{0,4}(?![\w:])")

# Markers of the chat templates in wide use, whichever of them this model's template writes.
_MARKERS = r"<[|\uff5c][\w\u2581]{2,40}[|\uff5c]>|</?(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>"


def encoding_damage(text: str) -> str | None:
    """Find characters that only a wrong decoding leaves behind; names which kinds, or None."""
    if text.isascii() and text.isprintable():
        return None
    return ", ".join(name for name, pattern in _DAMAGE.items() if pattern.search(text)) or None


def control_pattern(tokenizer: "PreTrainedTokenizerBase", marks: Collection[str] = ()) -> re.Pattern[str]:
    """A pattern for what the model would read as control, not as text: special tokens and template markers.

    The marks of reasoning belong into answers, though some tokenizers have them as special tokens.
    """
    added = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
    # A special token that is a plain word could not be distinguished from text.
    special = {token for token in [*tokenizer.all_special_tokens, *added] if not token.isalnum()}.difference(marks)
    return re.compile("|".join([*map(re.escape, sorted(special, key=lambda token: (-len(token), token))), _MARKERS]))


def control_tokens(pattern: re.Pattern[str], text: str) -> str | None:
    """Find control tokens in a text; names which, or None."""
    return ", ".join(dict.fromkeys(pattern.findall(text))) or None


def personal_data(text: str) -> str | None:
    """Find what looks like an e-mail address, a phone or card number or an IP address; names which kinds, or None."""
    kinds = []
    if "@" in text and _E_MAIL.search(text):
        kinds.append("e-mail")
    if _HOLDS_DIGITS.search(text):
        kinds += _numbers(text)
    if text.count(":") > 2 and any(_is_address(match) for match in _IP_V6.findall(text)):
        kinds.append("IP address")
    return ", ".join(dict.fromkeys(kinds)) or None


_HOLDS_DIGITS = re.compile(r"\d.?\d.?.?\d.{0,9}?\d", re.DOTALL)


def _numbers(text: str) -> list[str]:
    kinds = []
    cards = [match for match in _CARD.findall(text) if _luhn(match)]
    if cards:
        kinds.append("card number")
    if any(_is_phone(match) for match in _PHONE.findall(text)):
        kinds.append("phone number")
    if any(_is_address(match) for match in _IP_V4.findall(text)):
        kinds.append("IP address")
    return kinds


def _is_phone(match: str) -> bool:
    return 8 <= sum(character.isdigit() for character in match) <= 15  # at most 15: ITU E.164


def _luhn(match: str) -> bool:
    digits = [int(character) for character in match if character.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return len(digits) <= 19 and (sum(doubled) + sum(digits[-1::-2])) % 10 == 0


def _is_address(match: str) -> bool:
    try:
        address = ipaddress.ip_address(match)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified)
