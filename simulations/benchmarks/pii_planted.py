"""Personal data made up for the benchmark of the scrubber: as people write them, not as the rules expect them.

Nothing here reads a pattern of `client.intake.pii_rules`. Values are drawn by the publishers' own rules (check digits,
number ranges that are reserved for fiction where there are any) and then written in many ways, obfuscations included.
"""

from __future__ import annotations

import random
from collections.abc import Callable

FIRST = ("anna", "björn", "chen", "dmitri", "eva", "fatima", "george", "hanna", "ivan", "juan", "kofi", "lucía")
LAST = ("smith", "müller", "garcia", "rossi", "dubois", "nowak", "jansen", "okafor", "virtanen", "o'brien", "lindqvist")
HOSTS = (
    "example.com",
    "mail.example.org",
    "example.co.uk",
    "gmail.com",
    "web.de",
    "orange.fr",
    "uni-x.example",
    "proton.me",
)
WORDS = ("lamp", "garden", "river", "night", "stone", "cedar", "maple", "harbour", "bishop", "station")
CARRIERS = (
    "Great lamp, {}.",
    "If it breaks again write or come: {} and ask for me!",
    "{} - that is where they sent it, three weeks late",
    "they asked me for {} and I gave it, no idea why",
    "5 stars. My details, {}, are on the box; it took 12 days.",
    "(see {})",
    "Bought 2 of these in 2019.\n{}\nWould buy again",
    "the seller knows {} already, so what",
    "My contact:{}",
)
"""Sentences around a planted value; a digit or two of their own makes it no easier."""
Draw = Callable[[random.Random], str]


def _digits(r: random.Random, n: int) -> str:
    return "".join(r.choices("0123456789", k=n))


def _grouped(text: str, sizes: tuple[int, ...], separator: str) -> str:
    parts, at = [], 0
    for size in sizes:
        parts.append(text[at : at + size])
        at += size
    return separator.join([*parts, *([text[at:]] if text[at:] else [])])


def _name(r: random.Random) -> str:
    first, last = r.choice(FIRST), r.choice(LAST).replace("'", "")
    return r.choice(
        [f"{first}.{last}", f"{first}{r.randint(1, 99)}", f"{first[0]}_{last}", f"{last}-{first}", f"{first}+shop"]
    )


def email(r: random.Random) -> str:
    """As typed, in capitals, in angle brackets."""
    address = f"{_name(r)}@{r.choice(HOSTS)}"
    return r.choice(
        [address, address.upper(), address.title(), f"<{address}>", f"mailto:{address}", f"e-mail:{address}"]
    )


def hidden_email(r: random.Random) -> str:
    """With the at or the dots written out."""
    host = r.choice(HOSTS)
    at = r.choice([" at ", "(at)", " [at] ", " AT ", "{at}", " (a) ", " ät ", " @ ", "-at-", "＠"])
    dot = r.choice([".", " dot ", "[dot]", " (dot) ", " . ", " punkt "])
    return f"{_name(r)}{at}{host.replace('.', dot)}"


def phone(r: random.Random) -> str:
    """With a country code."""
    code = r.choice(["1", "44", "49", "33", "34", "39", "31", "46", "48", "358", "351", "7", "86"])
    rest = f"{r.randint(2, 9)}{_digits(r, 11 - len(code))}"
    shapes = [
        f"+{code} {_grouped(rest, (2, 3, 2), ' ')}",
        f"+{code}{rest}",
        f"00{code} {_grouped(rest, (3, 3), ' ')}",
        f"+{code}-{_grouped(rest, (3, 4), '-')}",
        f"+{code} (0){_grouped(rest, (2, 4), ' ')}",
        f"(+{code}) {_grouped(rest, (3, 3), '.')}",
        f"+{code}/{_grouped(rest, (3, 3), '/')}",
        f"+ {code} {_grouped(rest, (1, 2, 2, 2), ' ')}",
        f"Tel:+{code}{rest}",
    ]
    return r.choice(shapes)


def local_phone(r: random.Random) -> str:
    """Without a country code, as people at home write it; spelled out now and then."""
    us = f"{r.randint(201, 989)}555{_digits(r, 4)}"
    eu = f"0{r.randint(1, 9)}{_digits(r, 8)}"
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    shapes = [
        f"({us[:3]}) {us[3:6]}-{us[6:]}",
        _grouped(us, (3, 3), "-"),
        _grouped(us, (3, 3), "."),
        _grouped(us, (3, 3), " "),
        us,
        f"call me {us}",
        _grouped(eu, (2, 2, 2, 2), " "),
        _grouped(eu, (4,), "/"),
        _grouped(eu, (3, 3), "-"),
        eu,
        f"mobile {eu[1:]}",
        " ".join(words[int(one)] for one in us),
    ]
    return r.choice(shapes)


def iban(r: random.Random) -> str:
    """By ISO 7064, in groups of four, glued, or in small letters."""
    country, size = r.choice(
        [("DE", 18), ("FR", 23), ("ES", 20), ("AT", 16), ("BE", 12), ("PL", 24), ("SE", 20), ("PT", 21)]
    )
    body = _digits(r, size)
    check = 98 - int("".join(str(int(one, 36)) for one in body + country + "00")) % 97
    text = f"{country}{check:02d}{body}"
    groups = tuple([4] * (len(text) // 4))
    return r.choice([text, _grouped(text, groups, " "), _grouped(text, groups, "-"), text.lower(), f"IBAN:{text}"])


def card(r: random.Random) -> str:
    """By Luhn, with the first digits of five brands."""
    prefix, size = r.choice([("4", 16), ("51", 16), ("2221", 16), ("37", 15), ("6011", 16), ("36", 14)])
    body = prefix + _digits(r, size - len(prefix) - 1)
    total = 0
    for place, digit in enumerate(reversed(body)):
        value = int(digit) * (2 if place % 2 == 0 else 1)
        total += value if value < 10 else value - 9
    text = body + str(-total % 10)
    groups = (4, 6) if size in (14, 15) else (4, 4, 4)
    return r.choice(
        [text, _grouped(text, groups, " "), _grouped(text, groups, "-"), _grouped(text, groups, "."), f"#{text}"]
    )


def ip(r: random.Random) -> str:
    """Of both kinds, with ports and networks."""
    four = ".".join(str(r.randint(1, 254)) for _ in range(4))
    six = ":".join(f"{r.randint(0, 65535):x}" for _ in range(8))
    return r.choice(
        [
            four,
            f"{four}:8080",
            f"{four}/24",
            six,
            f"2001:db8::{r.randint(1, 9999):x}",
            f"[{six}]",
            f"fe80::{_digits(r, 2)}%eth0",
        ]
    )


def url(r: random.Random) -> str:
    """That name an account, an order or a login."""
    who = _name(r).replace("+", ".")
    shapes = [
        f"https://{who}:{r.choice(WORDS)}@shop.example/",
        f"https://shop.example/users/{who}",
        f"http://forum.example/profile/{who}?tab=posts",
        f"www.facebook.com/{who}",
        f"instagram.com/{who}",
        f"https://www.linkedin.com/in/{who}/",
        f"https://shop.example/orders?order={_digits(r, 8)}",
        f"https://shop.example/u/{who}",
        f"https://twitter.com/{who.replace('.', '_')}",
        f"https://x.example/~{who}/lamps.html",
        f"{who}.tumblr.com",
        f"https://shop.example/{who}/wishlist",
        f"t.me/{who}",
    ]
    return r.choice(shapes)


def address(r: random.Random) -> str:
    """In seven languages, with and without a town, some in small letters."""
    word, number = r.choice(WORDS), r.randint(1, 299)
    cap, town = word.title(), r.choice(WORDS).title()
    kind = r.choice(["Street", "St.", "Road", "Ave", "Lane", "Drive", "Blvd", "Court"])
    shapes = [
        f"{number} {cap} {kind}",
        f"{number} {cap} {town} {kind}, Apt {r.randint(1, 40)}",
        f"{number} {cap} {kind}, {town}, {r.choice(['IL', 'TX', 'NY', 'CA'])} {_digits(r, 5)}",
        f"{number} {word} {kind.lower()}",
        f"Flat 2, {number} {cap} {kind}, {town} {r.choice(['SW', 'M', 'LS'])}{r.randint(1, 9)} {r.randint(1, 9)}AB",
        f"{cap}straße {number}, {_digits(r, 5)} {town}",
        f"{cap}weg {number}b",
        f"Am alten {cap} {number}",
        f"{number} rue de la {cap}, {_digits(r, 5)} {town}",
        f"{number} avenue {cap}",
        f"Calle {cap} {number}, 2º B",
        f"Via {cap} {number}",
        f"{cap}straat {number}, {_digits(r, 4)} AB {town}",
        f"ul. {cap}owa {number}",
        f"P.O. Box {_digits(r, 4)}",
        f"Postfach {_digits(r, 4)}",
        f"{cap}gatan {number}",
    ]
    return r.choice(shapes)


def national_id(r: random.Random) -> str:
    """Of ten countries, by their own check digits."""
    return r.choice([_us, _uk, _es, _de, _pl, _fr, _fi, _se, _be, _nl, _it])(r)


def person(r: random.Random) -> str:
    """A name, which no rule knows."""
    return f"{r.choice(FIRST).title()} {r.choice(LAST).title()}"


def _us(r: random.Random) -> str:
    number = f"{r.randint(1, 665):03d}{r.randint(1, 99):02d}{r.randint(1, 9999):04d}"
    return r.choice([_grouped(number, (3, 2), "-"), _grouped(number, (3, 2), " "), f"SSN {number}"])


def _uk(r: random.Random) -> str:
    text = f"{r.choice('ABCEHJLMPRSTWXYZ')}{r.choice('ABCEHJLMPRSTWXYZ')}{_digits(r, 6)}{r.choice('ABCD')}"
    return r.choice([text, _grouped(text, (2, 2, 2, 2), " "), text.lower()])


def _es(r: random.Random) -> str:
    number = _digits(r, 8)
    letter = "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23]
    return r.choice([f"{number}{letter}", f"{number}-{letter}", f"{number} {letter}", f"{number}{letter.lower()}"])


def _de(r: random.Random) -> str:
    order = r.sample("0123456789", 10)
    spare = next(k for k in range(1, 10) if order[k] != "0")
    first = order[:]
    if first[0] == "0":
        first[0], first[spare] = first[spare], first[0]
    first[r.randint(2, 9)] = first[1]  # one digit twice, one not at all
    product = 10
    for digit in first:
        product = ((int(digit) + product) % 10 or 10) * 2 % 11
    text = "".join(first) + str((11 - product) % 10)
    return r.choice([text, _grouped(text, (2, 3, 3), " ")])


def _pl(r: random.Random) -> str:
    body = f"{r.randint(40, 99)}{r.randint(1, 12):02d}{r.randint(1, 28):02d}{_digits(r, 4)}"
    total = sum(int(one) * weight for one, weight in zip(body, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3), strict=True))
    return body + str(-total % 10)


def _fr(r: random.Random) -> str:
    body = f"{r.choice('12')}{_digits(r, 2)}{r.randint(1, 12):02d}{r.randint(10, 95)}{_digits(r, 6)}"
    text = f"{body}{97 - int(body) % 97:02d}"
    return r.choice([text, _grouped(text, (1, 2, 2, 2, 3, 3), " ")])


def _fi(r: random.Random) -> str:
    date, number = f"{r.randint(1, 28):02d}{r.randint(1, 12):02d}{r.randint(40, 99)}", f"{r.randint(2, 899):03d}"
    return f"{date}-{number}{'0123456789ABCDEFHJKLMNPRSTUVWXY'[int(date + number) % 31]}"


def _se(r: random.Random) -> str:
    body = f"{r.randint(40, 99)}{r.randint(1, 12):02d}{r.randint(1, 28):02d}{_digits(r, 3)}"
    total = 0
    for place, digit in enumerate(body):
        value = int(digit) * (2 if place % 2 == 0 else 1)
        total += value if value < 10 else value - 9
    number = body + str(-total % 10)
    return r.choice([f"{number[:6]}-{number[6:]}", f"19{number[:6]}-{number[6:]}", number])


def _be(r: random.Random) -> str:
    body = f"{r.randint(40, 99)}{r.randint(1, 12):02d}{r.randint(1, 28):02d}{r.randint(1, 997):03d}"
    text = f"{body}{97 - int(body) % 97:02d}"
    return r.choice([text, f"{text[:2]}.{text[2:4]}.{text[4:6]}-{text[6:9]}.{text[9:]}"])


def _nl(r: random.Random) -> str:
    while True:
        body = f"{r.randint(1, 9)}{_digits(r, 7)}"
        check = sum(int(one) * weight for one, weight in zip(body, range(9, 1, -1), strict=True)) % 11
        if check < 10:
            return r.choice([f"BSN {body}{check}", f"{body}{check}", f"burgerservicenummer: {body}{check}"])


def _it(r: random.Random) -> str:
    letters = "".join(r.choices("BCDFGLMNPRSTV", k=6))
    body = f"{letters}{r.randint(40, 99)}{r.choice('ABCDEHLMPRST')}{r.randint(1, 28):02d}"
    body += f"{r.choice('ABCDEFGHIL')}{_digits(r, 3)}"
    odd = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)

    def value(place: int, one: str) -> int:
        number = int(one) if one.isdecimal() else ord(one) - 65
        return odd[number] if place % 2 == 0 else number

    return body + chr(65 + sum(value(place, one) for place, one in enumerate(body)) % 26)


PLANTED: dict[str, tuple[str | None, Draw]] = {
    "e-mail": ("EMAIL", email),
    "e-mail, obfuscated": ("EMAIL", hidden_email),
    "phone with country code": ("PHONE", phone),
    "phone without": ("PHONE", local_phone),
    "IBAN": ("IBAN", iban),
    "payment card": ("CARD", card),
    "IP address": ("IP", ip),
    "URL with a user": ("URL", url),
    "postal address": ("ADDRESS", address),
    "national id": ("ID", national_id),
    "name of a person": (None, person),
}
"""By kind: the placeholder that stands for it (None: of no rule), and how one is drawn."""
