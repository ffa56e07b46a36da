"""Presidio beside the rules: names of persons, places and what else its recognisers find.

``pip install 'veilrec[pii]'`` and a spaCy model, ``python -m spacy download en_core_web_lg``, on a machine that may
download; the air-gapped one gets the wheel. The rules go first; Presidio sees what they left.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import polars as pl

from client.data.cleaning import MAX_TEXT_CHARS
from client.intake.scrubbing import RuleScrubber, replaced, scrubbed_column
from shared.errors import ConfigError

if TYPE_CHECKING:
    from presidio_analyzer import AnalyzerEngine

MODEL = "en_core_web_lg"
KINDS = {
    "PERSON": "NAME",
    "LOCATION": "ADDRESS",
    "EMAIL_ADDRESS": "EMAIL",
    "PHONE_NUMBER": "PHONE",
    "IBAN_CODE": "IBAN",
    "CREDIT_CARD": "CARD",
    "CRYPTO": "ID",
    "IP_ADDRESS": "IP",
    "US_SSN": "ID",
    "US_PASSPORT": "ID",
    "US_DRIVER_LICENSE": "ID",
    "US_ITIN": "ID",
    "US_BANK_NUMBER": "ID",
    "UK_NHS": "ID",
    "UK_NINO": "ID",
    "ES_NIF": "ID",
    "ES_NIE": "ID",
    "IT_FISCAL_CODE": "ID",
    "PL_PESEL": "ID",
}
"""What Presidio calls a kind, and what stands in its place. DATE_TIME, NRP and URL stay: a review needs them."""
LEAST_SCORE = 0.4


class PresidioScrubber:
    """The rules, then Presidio.

    Parameters
    ----------
    analyzer : presidio_analyzer.AnalyzerEngine
    language : str
    """

    def __init__(self, analyzer: AnalyzerEngine, language: str = "en") -> None:
        self._rules, self._analyzer, self._language = RuleScrubber(), analyzer, language
        supported = set(analyzer.get_supported_entities(language))
        self._entities = sorted(supported & KINDS.keys())

    @classmethod
    def installed(cls, model: str = MODEL) -> PresidioScrubber:
        """Presidio with the spaCy model that is installed here. Nothing is downloaded.

        Raises
        ------
        ConfigError
            If Presidio or the model is not there.
        """
        try:
            import spacy.util
            from presidio_analyzer import AnalyzerEngine
            from presidio_analyzer.nlp_engine import NlpEngineProvider
        except ImportError:
            raise ConfigError("scrub: Expected Presidio for scrub='presidio': pip install 'veilrec[pii]'.") from None
        if not spacy.util.is_package(model):  # Presidio would download it
            raise ConfigError(f"scrub: Expected the spaCy model {model} for scrub='presidio': install its wheel.")
        _stay_offline()
        told = {"nlp_engine_name": "spacy", "models": [{"lang_code": "en", "model_name": model}]}
        engine = NlpEngineProvider(nlp_configuration=told).create_engine()
        return cls(AnalyzerEngine(nlp_engine=engine, supported_languages=["en"]))

    @property
    def identity(self) -> str:
        """Changes with the rules, and with what Presidio is asked for."""
        from importlib.metadata import version

        return f"{self._rules.identity}+presidio-{version('presidio-analyzer')}"

    def scrub(self, text: str) -> tuple[str, Counter[str]]:
        """One text; what is longer than `MAX_TEXT_CHARS` is cut."""
        text, counts = self._rules.scrub(text[:MAX_TEXT_CHARS])
        if not self._entities:
            return text, counts
        results: list[Any] = self._analyzer.analyze(
            text, language=self._language, entities=self._entities, score_threshold=LEAST_SCORE
        )
        by_kind: dict[str, list[tuple[int, int]]] = {}
        taken: list[tuple[int, int]] = []
        for one in sorted(results, key=lambda result: (-result.score, result.start)):
            if not any(one.start < end and start < one.end for start, end in taken) and not _touches(text, one):
                taken.append((one.start, one.end))
                by_kind.setdefault(KINDS[one.entity_type], []).append((one.start, one.end))
        kinds = {span: kind for kind, spans in by_kind.items() for span in spans}
        for span in sorted(kinds, reverse=True):  # from the end: what is before keeps its place
            text, found = replaced(text, kinds[span], [span])
            counts[kinds[span]] += found
        return text, counts

    def column(self, texts: pl.Series) -> tuple[pl.Series, Counter[str]]:
        """A column of texts; a name gives no sign, so that every text is read."""
        return scrubbed_column(self, texts, None)


def _touches(text: str, result: Any) -> bool:
    """Whether a span reaches into a placeholder of the rules."""
    return "[" in text[result.start : result.end] or text[max(0, result.start - 1) : result.start] == "["


def _stay_offline() -> None:
    """Presidio's e-mail recogniser asks tldextract, which would fetch a list; the one it ships is enough."""
    import tldextract.tldextract as tld

    tld.TLD_EXTRACTOR = tld.TLDExtract(cache_dir=None, suffix_list_urls=())
