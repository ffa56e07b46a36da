"""Check digits of the numbers that people are known by: what fails them is some other number."""

from __future__ import annotations

import ipaddress
from datetime import date

IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BR": 29, "CH": 21,
    "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18, "FO": 18,
    "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IS": 26,
    "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "MC": 27, "MD": 24,
    "ME": 22, "MK": 19, "MT": 31, "MU": 30, "NL": 18, "NO": 15, "PK": 24, "PL": 28, "PS": 29, "PT": 25, "QA": 29,
    "RO": 24, "RS": 22, "SA": 24, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "TN": 24, "TR": 26, "UA": 29, "VA": 22,
    "XK": 20,
}  # fmt: skip
"""ISO 13616 registry."""
DNI_LETTERS = "TRWAGMYFPDXBNJZSQVHLCKE"
FI_LETTERS = "0123456789ABCDEFHJKLMNPRSTUVWXY"
CF_ODD = dict(
    zip("0123456789", (1, 0, 5, 7, 9, 13, 15, 17, 19, 21), strict=True),
) | dict(
    zip(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23),
        strict=True,
    )
)
CARDS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("34", "37"), (15,)),
    **dict.fromkeys(("30", "36", "38", "39"), (14,)),
    "4": (16, 13, 19),
}
OTHER_CARDS = ("2", "35", "5", "6")


def luhn(digits: str) -> bool:
    """ISO/IEC 7812-1."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 * (value > 9)
    return total % 10 == 0


def iban(text: str) -> int:
    """How many of the characters (no separators, upper case) are an IBAN; 0 if they do not begin with one."""
    length = IBAN_LENGTHS.get(text[:2], 0)
    if not length or len(text) < length:
        return 0
    moved = text[4:length] + text[:4]
    return length if int("".join(str(int(one, 36)) for one in moved)) % 97 == 1 else 0


def card(digits: str) -> int:
    """How many of the digits are a payment card's number; 0 if they do not begin with one."""
    lengths: tuple[int, ...] = next((sizes for prefix, sizes in CARDS.items() if digits.startswith(prefix)), ())
    if not lengths and digits.startswith(OTHER_CARDS):
        lengths = (16, 19)
    return next((size for size in lengths if len(digits) >= size and luhn(digits[:size])), 0)


def is_date(year: int, month: int, day: int) -> bool:
    """Whether there is such a day."""
    try:
        date(year, month, day)
    except ValueError:
        return False
    return True


def german_tax_id(digits: str) -> bool:
    """ISO 7064, MOD 11,10; one digit occurs two or three times among the first ten."""
    counts = sorted(digits[:10].count(one) for one in set(digits[:10]))
    if digits[0] == "0" or counts[-1] not in (2, 3) or counts[-2] > 1:
        return False
    product = 10
    for digit in digits[:10]:
        product = (int(digit) + product) % 10 or 10
        product = product * 2 % 11
    return (11 - product) % 10 == int(digits[10])


def pesel(digits: str) -> bool:
    """Poland: weights 1 3 7 9, and a date in it."""
    total = sum(int(one) * weight for one, weight in zip(digits, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1), strict=True))
    month = int(digits[2:4]) % 20
    return total % 10 == 0 and 1 <= month <= 12 and 1 <= int(digits[4:6]) <= 31


def nir(text: str) -> bool:
    """France: 13 characters and 97 minus their remainder."""
    number = text[:13].replace("2A", "19").replace("2B", "18")
    return number.isdecimal() and 97 - int(number) % 97 == int(text[13:15])


def dni(text: str) -> bool:
    """Spain, DNI and NIE: a letter by the remainder of 23."""
    number = text[:-1].replace("X", "0").replace("Y", "1").replace("Z", "2")
    return DNI_LETTERS[int(number) % 23] == text[-1]


def codice_fiscale(text: str) -> bool:
    """Italy: odd and even places weigh differently, modulo 26."""
    even = sum(int(one) if one.isdecimal() else ord(one) - 65 for one in text[1:15:2])
    odd = sum(CF_ODD[one] for one in text[0:15:2])
    return chr(65 + (even + odd) % 26) == text[15]


def bsn(digits: str) -> bool:
    """The Netherlands: the eleven test."""
    weights = (9, 8, 7, 6, 5, 4, 3, 2, -1)
    return sum(int(one) * weight for one, weight in zip(digits, weights, strict=True)) % 11 == 0


def belgian(digits: str) -> bool:
    """Belgium: 97 minus the remainder of the first nine, with a 2 in front for births from 2000 on."""
    checks = (97 - int(digits[:9]) % 97, 97 - int("2" + digits[:9]) % 97)
    return int(digits[9:]) in checks and int(digits[2:4]) <= 12 and int(digits[4:6]) <= 31


def swedish(digits: str) -> bool:
    """Sweden: Luhn over the last ten, and a date (a coordination number adds 60 to the day)."""
    ten = digits[-10:]
    return luhn(ten) and is_date(2000 + int(ten[:2]) % 4 * 4, int(ten[2:4]), 1) and 1 <= int(ten[4:6]) % 60 <= 31


def finnish(text: str) -> bool:
    """Finland: modulo 31."""
    return FI_LETTERS[int(text[:6] + text[7:10]) % 31] == text[10] and 1 <= int(text[2:4]) <= 12


def danish(digits: str) -> bool:
    """Denmark has no check digit any more: a date in front of four digits."""
    return is_date(2000 + int(digits[4:6]) % 4 * 4, int(digits[2:4]), min(int(digits[:2]), 29)) and (
        1 <= int(digits[:2]) <= 31
    )


def romanian(digits: str) -> bool:
    """Romania: weights 279146358279, modulo 11."""
    rest = sum(int(one) * int(weight) for one, weight in zip(digits, "279146358279", strict=False)) % 11
    check = 1 if rest == 10 else rest
    return digits[0] in "12345678" and check == int(digits[12]) and 1 <= int(digits[3:5]) <= 12


def ip_address(text: str) -> bool:
    """IPv4 or IPv6."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
