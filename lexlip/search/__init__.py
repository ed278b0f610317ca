"""Searching as a person does: `lexlip search` with filters, contact sheets and fusion with dense vectors."""
