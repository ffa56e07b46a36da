"""Where a text holds what tells who somebody is: one function a kind, from a text to spans.

No pattern has a repetition inside an unbounded repetition: each start costs a bounded number of steps, so a text
costs time in proportion to its length, whoever wrote it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from client.intake import checksums

Span = tuple[int, int]
Find = Callable[[str], Iterator[Span]]

FREEMAIL = (
    r"(?:gmail|googlemail|yahoo|ymail|hotmail|outlook|live|msn|icloud|aol|gmx|web|proton(?:mail)?|mail|fastmail|zoho|"
    r"free|orange|wanadoo|laposte|libero|virgilio|t-online|freenet|wp|o2|seznam|comcast|verizon|btinternet|example)"
)
DOT = r"(?:\.|\s?[\[({<]\s?(?:dot|punkt|point|punto|\.)\s?[\])}>]\s?|\s\.\s)"
SAID_DOT = r"(?:\s?[\[({<]\s?(?:dot|punkt|point|punto|\.)\s?[\])}>]\s?|\s(?i:dot|punkt|punto)\s)"
AT = r"(?:[@＠]|\s[@＠]\s|\s{0,2}[\[({<]\s?(?i:at|ät|a|arroba|@)\s?[\])}>]\s{0,2})"
SAID_AT = r"(?:\s(?i:at|ät|arroba)\s|-at-)"
TOP = r"(?:com|net|org|info|edu|eu|de|at|ch|fr|es|it|nl|be|pl|pt|se|fi|dk|no|ie|uk|us|ca|me|io)"
LOCAL = r"(?<![\w.+-])[\w.!#$%&'*+/=?^`{|}~-]{1,64}"
EMAIL = re.compile(rf"{LOCAL}{AT}(?:[\w-]{{1,63}}(?:{DOT}|{SAID_DOT})){{1,5}}[^\W\d_]{{2,24}}(?![\w-])")
SAID_EMAIL = re.compile(
    rf"(?<![\w.+-])[\w.+-]{{1,64}}?{SAID_AT}(?:{FREEMAIL}(?:{DOT}|{SAID_DOT})|(?:[\w-]{{1,63}}{SAID_DOT}){{1,3}})"
    rf"(?:co(?:{DOT}|{SAID_DOT}))?{TOP}(?![\w-])"
)
URL = re.compile(r"(?<![\w@])(?:https?://|ftp://|www\.|mailto:)[^\s<>\"]{1,2000}", re.IGNORECASE)
USER_PART = re.compile(
    r"mailto:|//[^/\s@]{1,128}@|/(?:users?|u|profiles?|people|members?|accounts?|authors?|in|channel|c|pub|id)/[^/\s?#]|"
    r"/[~@]\w|[?&](?:user|user_?name|user_?id|uid|e?mail|account|customer|order|token|session|sid|phone|id)=",
    re.IGNORECASE,
)
NETWORK = re.compile(
    r"(?<![\w@.-])(?:https?://)?(?:(?:www|m|mobile)\.)?(?:facebook|fb|instagram|twitter|x|tiktok|linkedin|vk|github|gitlab|"
    r"pinterest|snapchat|twitch|soundcloud|flickr|t|telegram|wa|goodreads|letterboxd|medium|reddit|youtube)\.(?:com|me|tv|ru)/"
    r"(?!watch|groups?/|pages?/|p/|reel|hashtag|events?/|share|search|explore|playlist|help|about|r/|shorts|results)"
    r"[\w.@~+/-]{2,128}",
    re.IGNORECASE,
)
IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}(?:[ .-]?[A-Za-z0-9]){11,32}")
CARD = re.compile(r"(?<![\w.])\d(?:[ .-]?\d){12,18}(?!\d)")
INTERNATIONAL = re.compile(r"(?<![\w.+])(?:\+ ?[1-9]|\(\+ ?[1-9]|00[ -]?[1-9])(?:[ ./()-]{0,3}\d){6,14}(?![\d])")
NATIONAL = re.compile(r"(?<![\w.,$€£/-])\(?0\d(?:[ ./()-]{0,2}\d){7,10}(?![\d])(?![.,]\d)")
AMERICAN = re.compile(r"(?<![\w.+$-])(?:1[ .-])?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[ .-])[2-9]\d{2}[ .-]\d{4}(?![\w-])")
ANY_PHONE = re.compile(r"(?<![\w.,$€£])\(?\d(?:[ ./()-]{0,2}\d){5,13}(?![\w])")
PHONE_WORD = re.compile(
    r"\b(?:call|contact|ph|tel|telephone|phone|fone|text(?: me)?|sms|whats ?app|signal|mobile|cell|fax|ring|dial|"
    r"hotline|reach|"
    r"telefon|handy|mobil|anrufen|ruf|t[ée]l[ée]phone|portable|appelez|tel[ée]fono|m[óo]vil|ll[áa]ma\w*|cellulare|"
    r"telefono|bel|telefoon|number)\b",
    re.IGNORECASE,
)
IPV4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\w)(?!\.\d)")
IPV6 = re.compile(
    r"(?<![\w.])(?<![0-9A-Fa-f:]:)(?<!::)(?=[0-9A-Fa-f]{0,4}:)[0-9A-Fa-f:]{4,39}(?:\.\d{1,3}){0,3}(?![\w:])"
)
TAIL = re.compile(r"(?:%\w{1,16})?(?:\]?:\d{1,5}|/\d{1,3})?(?!\w)")
"""Of an address: zone, port, network."""
VERSION_WORD = re.compile(r"\b(?:version|firmware|release|build|update|ver|driver|patch|section)\b", re.IGNORECASE)

WORD = r"[A-ZÀ-ÞÄÖÜ0-9][\w'’.-]{0,30}"
SMALL = r"(?:(?:de la|de los|de las|de l['’]|du|des|del|della|dello|dei|degli|delle|di|de|da|do|dos|d['’]|van|den)\s?)?"
ENGLISH_STREET = (
    r"(?:Street|St|Avenue|Ave|Road|Rd|Boulevard|Blvd|Lane|Ln|Drive|Dr|Court|Ct|Place|Pl|Square|Sq|Terrace|Ter|Way|"
    r"Parkway|Pkwy|Highway|Hwy|Crescent|Cres|Close|Circle|Cir|Gardens|Gdns|Mews|Row|Trail|Trl|Loop|Alley|Walk|Hill|Grove)"
)
UNIT = r"(?:,?\s{1,2}(?:Apt|Apartment|Unit|Suite|Ste|Flat|Floor|#)\.?\s?#?\w{1,6})?"
UK_CODE = r"[A-Z]{1,2}\d[A-Z\d]?\s\d[ABD-HJLNP-UW-Z]{2}"
STATES = (
    r"(?:A[LKZR]|C[AOT]|D[EC]|FL|GA|HI|I[DLNA]|K[SY]|LA|M[EDAINSOT]|N[EVHJMYCD]|O[HKR]|PA|RI|S[CD]|T[NX]|UT|V[TA]|"
    r"W[AVIY])"
)
ENGLISH_CITY = r"(?:,?\s{1,2}[A-Z][\w'.-]{1,30}(?:\s[A-Z][\w'.-]{1,30}){0,2})?"
ENGLISH = re.compile(
    rf"(?<![\w.,$])\d{{1,5}}[A-Za-z]?,?\s{{1,2}}(?:[NSEW]\.?\s)?(?:{WORD}\s{{1,2}}){{1,4}}?{ENGLISH_STREET}\b\.?{UNIT}"
    rf"(?:{ENGLISH_CITY},?\s{{1,2}}(?:{STATES}(?:\s{{1,2}}\d{{5}}(?:-\d{{4}})?)?|{UK_CODE}|\d{{4,5}}))?(?!\w)"
)
PLAIN_STREET = re.compile(
    r"(?<![\w.,$])\d{1,5} (?!way|lane|mile|dirt|one|two|gravel|main line|car|block|mean)[a-z]{3,20} "
    r"(?:street|road|avenue|ave|boulevard|blvd)(?!\w)"
)
GERMAN = re.compile(
    r"(?<!\w)(?:(?!Brigade|Renegade)[A-ZÄÖÜ][\wäöüß.-]{1,40}?(?:straße|strasse|str\.|weg|platz|gasse|allee|damm|ufer|chaussee|stieg|straat|"
    r"laan|plein|gracht|kade|dijk|gatan|vägen|gade|vej)|[A-ZÄÖÜ][\wäöüß.-]{1,40}(?:\s|-)(?:Straße|Strasse|Str\.|Weg|Platz|Allee|Ring|"
    r"Damm|Ufer|Chaussee))\s?\d{1,4}(?:\s?[a-zA-Z]\b)?(?:,?\s{1,2}(?:[A-Z]{1,2}-)?\d{4,5}(?:\s?[A-Z]{2}\b)?\s{1,2}[A-ZÄÖÜ][\wäöüß-]{1,40})?(?!\w)"
)
FRENCH = re.compile(
    r"(?<![\w.,])\d{1,4}(?:\s?(?:bis|ter|quater))?,?\s{1,2}(?i:rue|avenue|av\.|boulevard|bd|place|chemin|allée|impasse|quai|"
    rf"route|cours|square|passage)\s{SMALL}{WORD}(?:[\s-]{SMALL}{WORD}){{0,3}}(?:,?\s{{1,2}}\d{{5}}\s{{1,2}}{WORD})?"
)
SOUTHERN = re.compile(
    r"(?<!\w)(?:Calle|C/|Avenida|Avda\.?|Plaza|Paseo|Carrer|Via|Viale|Piazza|Piazzale|Corso|Largo|Rua|Praça|ulica|ul\.|aleja|al\.)\s?"
    rf"{SMALL}{WORD}(?:\s{SMALL}{WORD}){{0,3}}?,?\s{{1,2}}(?:n[º°.]?\s?)?\d{{1,4}}(?:[/-]\d{{1,4}})?(?:\s?[a-zA-Z]\b)?"
    rf"(?:,?\s{{1,2}}\d{{2,5}}(?:-\d{{3}})?\s{{1,2}}{WORD})?"
)
BOX = re.compile(
    r"(?<!\w)(?:P\.?\s?O\.?\s?Box|Postfach|Apartado(?: de Correos)?|Postbus|Bo[iî]te postale|Casella postale)"
    r"\s{0,2}\d{1,6}\b",
    re.IGNORECASE,
)
CODES = re.compile(rf"(?<![\w-])(?:{UK_CODE}|{STATES}\s{{1,2}}\d{{5}}(?:-\d{{4}})?)(?![\w-])")

SSN = re.compile(r"(?<![\w-])(?!000|666|9)\d{3}([- ])(?!00)\d{2}\1(?!0000)\d{4}(?![\w-])")
NINO = re.compile(
    r"(?<!\w)(?!BG|GB|NK|KN|TN|NT|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d{2} ?\d{2} ?\d{2} ?[A-D](?!\w)",
    re.IGNORECASE,
)
NIR = re.compile(r"(?<!\w)[12] ?\d{2} ?\d{2} ?(?:\d{2}|2[ABab]) ?\d{3} ?\d{3} ?\d{2}(?!\w)")
DNI = re.compile(r"(?<!\w)(?:\d{8}|\d{2}\.\d{3}\.\d{3}|[XYZxyz][- ]?\d{7})[- ]?[A-Za-z](?!\w)")
CODICE = re.compile(r"(?<!\w)[A-Z]{6}\d{2}[A-EHLMPRST]\d{2}[A-Z]\d{3}[A-Z](?!\w)", re.IGNORECASE)
ELEVEN = re.compile(r"(?<![\w.])\d(?:[ ]?\d){10}(?!\w)")
BELGIAN = re.compile(r"(?<!\w)\d{2}[. ]?\d{2}[. ]?\d{2}[- ]?\d{3}[. -]?\d{2}(?!\w)")
NORDIC = re.compile(r"(?<!\w)(?:\d{2})?\d{6}[-+]\d{4}(?!\w)")
FINNISH = re.compile(r"(?<!\w)\d{6}[-+A-FU-Y]\d{3}[0-9A-Y](?!\w)")
THIRTEEN = re.compile(r"(?<!\w)[1-8]\d{12}(?!\w)")
NINE = re.compile(r"(?<!\w)\d{3}[ .]?\d{3}[ .]?\d{3}(?!\w)|(?<!\w)\d{4}[ .]\d{2}[ .]\d{3}(?!\w)")
ID_WORD = re.compile(
    r"\b(?:ssn|social security|bsn|burgerservicenummer|sofinummer|nif|contribuinte|steuer-?id|tax (?:id|number)|"
    r"national (?:id|insurance)|passport|passeport|reisepass|ausweis|personal ?nummer|identity card|"
    r"id (?:card|number))\b",
    re.IGNORECASE,
)
PASSPORT = re.compile(r"(?<!\w)[A-Z]{0,2}\d{6,9}[A-Z]?\d?(?!\w)")
NEAR = 32
"""Characters before a number in which a word may say what it is."""


def emails(text: str) -> Iterator[Span]:
    """Addresses, also with the at and the dots written out."""
    for pattern in (EMAIL, SAID_EMAIL):
        yield from (found.span() for found in pattern.finditer(text))


def urls(text: str) -> Iterator[Span]:
    """Addresses of pages that name a user, an account or an order; other links stay."""
    for found in URL.finditer(text):
        if USER_PART.search(found.group()):
            yield found.start(), found.end() - (found.group()[-1] in ".,;:!?)")
    yield from (found.span() for found in NETWORK.finditer(text))


def ibans(text: str) -> Iterator[Span]:
    """Account numbers, by length and check digits of their country."""
    for found in IBAN.finditer(text):
        places = [k for k in range(found.start(), found.end()) if text[k].isalnum()]
        length = checksums.iban("".join(text[k] for k in places).upper())
        if length:
            yield found.start(), places[length - 1] + 1


def cards(text: str) -> Iterator[Span]:
    """Payment cards, by Luhn and the length that goes with the first digits."""
    for found in CARD.finditer(text):
        places = [k for k in range(found.start(), found.end()) if text[k].isdecimal()]
        length = checksums.card("".join(text[k] for k in places))
        if length:
            yield found.start(), places[length - 1] + 1


def phones(text: str) -> Iterator[Span]:
    """Numbers with a country code, with a leading 0, in American groups, or behind a word such as "call"."""
    for found in INTERNATIONAL.finditer(text):
        if 8 <= _digits(found.group()) <= 17:
            yield found.span()
    for found in NATIONAL.finditer(text):
        yield found.span()
    yield from (found.span() for found in AMERICAN.finditer(text))
    for found in ANY_PHONE.finditer(text):
        if PHONE_WORD.search(text, max(0, found.start() - NEAR), found.start()):
            yield found.span()


def ips(text: str) -> Iterator[Span]:
    """Addresses of machines; numbers of versions stay."""
    for pattern in (IPV4, IPV6):
        for found in pattern.finditer(text):
            versioned = VERSION_WORD.search(text, max(0, found.start() - 16), found.start())
            bare = found.group().rstrip(":")
            if not versioned and checksums.ip_address(bare):
                end = found.start() + len(bare)
                tail = TAIL.match(text, end)
                yield found.start(), tail.end() if tail else end


def addresses(text: str) -> Iterator[Span]:
    """Street with number, box, postcode; as far as rules go."""
    for pattern in (ENGLISH, PLAIN_STREET, GERMAN, FRENCH, SOUTHERN, BOX, CODES):
        yield from (found.span() for found in pattern.finditer(text))


def national_ids(text: str) -> Iterator[Span]:
    """Numbers of persons in the US and some countries of Europe, by their check digits."""
    checks: tuple[tuple[re.Pattern[str], Callable[[str], bool]], ...] = (
        (NIR, lambda found: checksums.nir(found.upper())),
        (DNI, lambda found: checksums.dni(found.upper())),
        (CODICE, lambda found: checksums.codice_fiscale(found.upper())),
        (ELEVEN, lambda found: checksums.german_tax_id(found) or checksums.pesel(found)),
        (BELGIAN, checksums.belgian),
        (NORDIC, lambda found: checksums.swedish(found) or (len(found) == 10 and checksums.danish(found))),
        (THIRTEEN, checksums.romanian),
    )
    for found in (*SSN.finditer(text), *NINO.finditer(text)):
        yield found.span()
    for pattern, check in checks:
        for found in pattern.finditer(text):
            if check(re.sub(r"[^0-9A-Za-z]", "", found.group())):
                yield found.span()
    for found in FINNISH.finditer(text):
        if checksums.finnish(found.group()):
            yield found.span()
    for found in (*NINE.finditer(text), *PASSPORT.finditer(text)):
        if ID_WORD.search(text, max(0, found.start() - NEAR), found.start()):
            yield found.span()


def _digits(text: str) -> int:
    return sum(one.isdecimal() for one in text)


RULES: tuple[tuple[str, Find], ...] = (
    ("URL", urls),
    ("EMAIL", emails),
    ("IBAN", ibans),
    ("CARD", cards),
    ("ID", national_ids),
    ("IP", ips),
    ("PHONE", phones),
    ("ADDRESS", addresses),
)
"""In this order: what one has replaced, the next does not see."""
