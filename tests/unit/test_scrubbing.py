"""What the rules find, what they let stay, and that no text can make them slow."""

from __future__ import annotations

import random
import time

import polars as pl
import pytest

from client.data.cleaning import MAX_TEXT_CHARS
from client.intake import checksums
from client.intake.scrubbing import WORTH_A_LOOK, RuleScrubber, scrubber_of
from shared.errors import ConfigError

SCRUBBER = RuleScrubber()


def scrubbed(text: str) -> str:
    return SCRUBBER.scrub(text)[0]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("write to jane.doe+lamps@mail.example.co.uk!", "write to [EMAIL]!"),
        ("jane (at) example [dot] org", "[EMAIL]"),
        ("jane at gmail dot com", "[EMAIL]"),
        ("jane＠example.com", "[EMAIL]"),
        ("call +44 20 7946 0958 now", "call [PHONE] now"),
        ("0049-30-1234567", "[PHONE]"),
        ("(555) 234-5678 or 555.234.5678", "[PHONE] or [PHONE]"),
        ("06 12 34 56 78", "[PHONE]"),
        ("text me 5552345678", "text me [PHONE]"),
        ("٠٦ ١٢ ٣٤ ٥٦ ٧٨", "[PHONE]"),
        ("DE89 3704 0044 0532 0130 00 please", "[IBAN] please"),
        ("gb29nwbk60161331926819", "[IBAN]"),
        ("4111 1111 1111 1111 12/25", "[CARD] 12/25"),
        ("3782-822463-10005", "[CARD]"),
        ("from 203.0.113.9 and 2001:db8::1", "from [IP] and [IP]"),
        ("https://jane:pw@example.com/", "[URL]"),
        ("see https://shop.example/users/jane7, please", "see [URL], please"),
        ("facebook.com/jane.doe.77", "[URL]"),
        ("at 12 Main Street, Springfield, IL 62704.", "at [ADDRESS]."),
        ("Musterstraße 12a, 10115 Berlin", "[ADDRESS]"),
        ("12 rue de la Paix, 75002 Paris", "[ADDRESS]"),
        ("Calle Mayor 12", "[ADDRESS]"),
        ("P.O. Box 1234", "[ADDRESS]"),
        ("SW1A 1AA", "[ADDRESS]"),
        ("ssn 123-45-6789", "ssn [ID]"),
        ("AB123456C", "[ID]"),
        ("12345678Z", "[ID]"),
        ("RSSMRA85T10A562S", "[ID]"),
        ("44051401359", "[ID]"),
        ("86095742719", "[ID]"),
        ("131052-308T", "[ID]"),
        ("811228-9874", "[ID]"),
        ("85.07.30-033.28", "[ID]"),
        ("1 84 12 76 451 089 46", "[ID]"),
        ("BSN 111222333", "BSN [ID]"),
        ("1800101221144", "[ID]"),
    ],
)
def test_what_tells_who_somebody_is_becomes_the_name_of_its_kind(text: str, kept: str) -> None:
    assert scrubbed(text) == kept
    assert pl.Series([text]).str.contains(WORTH_A_LOOK).item()  # the quick look lets it through


@pytest.mark.parametrize(
    "text",
    [
        "I paid $1,299.99 on 01/02/2013 for 2 of 10: 5 stars!",
        "Firmware version 1.2.3.4 came at 12:30:45.",
        "1080p, 4K, 60 Hz, 8.5 x 11 in, 100 000 hours, 2,000,000 people",
        "Meet me at the shop at 5; look at this, dot by dot.",
        "https://shop.example/product/12345678 and youtube.com/watch?v=abcdefg",
        "Order 4111 1111 1111 1112 is no card and DE00 3704 1144 1532 1130 11 is no account.",
        "12 lamps on the way, 3 of them in place",
        "The street was dark; my 2 lane road is not.",
        "123456789 12345678A 44051401358",
        "M 1 and A 4 paper",
    ],
)
def test_other_numbers_and_words_stay(text: str) -> None:
    assert scrubbed(text) == text


def test_a_check_digit_decides() -> None:
    """Of random digits the share that the checks let pass is what their arithmetic says."""
    draw = random.Random(3)
    cards = sum(checksums.card("4" + "".join(draw.choices("0123456789", k=15))) == 16 for _ in range(4000))
    ibans = sum(checksums.iban("DE" + "".join(draw.choices("0123456789", k=20))) > 0 for _ in range(4000))
    # Binomial(4000, 0.1) and (4000, 1/97): beyond these bounds with probability below 1e-9.
    assert 270 < cards < 540
    assert 5 < ibans < 90


ADVERSARIAL = {
    "a": "a",
    "digits": "1",
    "spaced digits": "1 ",
    "dots": "a.",
    "at": "a@",
    "at words": "a at ",
    "exclamation": "!",
    "colons": "1:",
    "groups": "123-",
    "capitals": "Ab ",
    "numbered capitals": "1 Ab ",
    "iban": "DE89 ",
    "url": "http://",
    "path": "/users",
    "plus": "+1 ",
    "phones": "+49 30 1234567",
    "brackets": "[at] ",
    "german": "Astraßestraße",
    "rue": "1 rue de A ",
    "via": "Via A ",
    "spaces": " ",
    "mixed": "1.1.1.1@a.b/c:d 0",
}


@pytest.mark.parametrize("unit", ADVERSARIAL.values(), ids=ADVERSARIAL)
def test_no_text_makes_the_rules_slow(unit: str) -> None:
    """Twice the length costs about twice the time in one pass; the longest text that is read costs little."""
    from client.intake.pii_rules import RULES

    def cost(size: int) -> float:
        text = (unit * size)[:size]
        best = []
        for _ in range(2):
            begun = time.process_time()
            for _, find in RULES:
                list(find(text))
            best.append(time.process_time() - begun)
        return min(best)

    assert cost(4 * MAX_TEXT_CHARS) < 10 * cost(MAX_TEXT_CHARS) + 0.02  # 4 if linear, 16 if quadratic
    begun = time.process_time()
    scrubbed(unit * 1_000_000)
    assert time.process_time() - begun < 3.0


def test_what_is_too_long_to_be_read_does_not_stay() -> None:
    assert len(scrubbed("x" * 9_000 + " jane@example.com")) == MAX_TEXT_CHARS


def test_a_column_is_scrubbed_as_its_texts_are() -> None:
    texts = pl.Series(["fine", "jane@example.com", "", "jane@example.com", "tel 555 123 4567"])
    column, counts = SCRUBBER.column(texts)
    assert column.to_list() == ["fine", "[EMAIL]", "", "[EMAIL]", "tel [PHONE]"]
    assert counts == {"EMAIL": 1, "PHONE": 1}


def test_off_scrubs_nothing_and_presidio_has_to_be_installed() -> None:
    assert scrubber_of("off") is None
    try:
        import presidio_analyzer  # noqa: F401
    except ImportError:
        with pytest.raises(ConfigError, match=r"veilrec\[pii\]"):
            scrubber_of("presidio")


def test_presidio_finds_what_its_recognisers_know_beside_the_rules() -> None:
    """The real analyser, with recognisers that need no model: no spaCy model is installed for tests."""
    presidio = pytest.importorskip("presidio_analyzer", reason="the extra veilrec[pii] is not installed")
    from presidio_analyzer.nlp_engine import NlpArtifacts, NlpEngine

    from client.intake.presidio import PresidioScrubber

    class NoModel(NlpEngine):
        """Splits a text into words and knows nothing of them."""

        def load(self) -> None: ...

        def is_loaded(self) -> bool:
            return True

        def process_text(self, text: str, language: str) -> NlpArtifacts:
            import spacy

            doc = spacy.blank("en")(text)
            return NlpArtifacts([], doc, [token.idx for token in doc], [token.text for token in doc], self, language)

        def process_batch(self, texts: object, language: str, **_: object) -> object:
            raise NotImplementedError

        def is_stopword(self, word: str, language: str) -> bool:
            return False

        def is_punct(self, word: str, language: str) -> bool:
            return False

        def get_supported_entities(self) -> list[str]:
            return []

        def get_supported_languages(self) -> list[str]:
            return ["en"]

    registry = presidio.RecognizerRegistry(supported_languages=["en"])
    names = presidio.PatternRecognizer("PERSON", name="names", deny_list=["Jane Doe"])
    registry.add_recognizer(names)
    registry.add_recognizer(presidio.predefined_recognizers.UsSsnRecognizer())
    registry.add_recognizer(presidio.predefined_recognizers.EmailRecognizer())
    analyzer = presidio.AnalyzerEngine(registry=registry, nlp_engine=NoModel(), supported_languages=["en"])
    scrubber = PresidioScrubber(analyzer)
    text, counts = scrubber.scrub("Jane Doe (jane@example.com, SSN 078 05 1120) likes it")
    assert text == "[NAME] ([EMAIL], SSN [ID]) likes it"
    assert counts == {"NAME": 1, "EMAIL": 1, "ID": 1}
    assert scrubber.column(pl.Series(["asked Jane Doe"]))[0].to_list() == ["asked [NAME]"]
    assert scrubber.identity.startswith("rules-")


def test_presidio_without_its_model_is_refused_rather_than_downloaded() -> None:
    pytest.importorskip("presidio_analyzer", reason="the extra veilrec[pii] is not installed")
    with pytest.raises(ConfigError, match="spaCy model"):
        scrubber_of("presidio")
