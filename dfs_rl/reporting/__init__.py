"""Tables and figures of records and summaries; all drawing code is here."""
