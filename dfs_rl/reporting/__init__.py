"""Records and summaries to tables and pictures; the only place that draws."""
