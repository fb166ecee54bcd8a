"""How results are measured and shown: rates with intervals, films and charts, reports and summaries."""
