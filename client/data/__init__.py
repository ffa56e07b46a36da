"""From a partner's files to user histories: ingest, clean, pseudonymise, group."""
