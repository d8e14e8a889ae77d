"""Auditing where models are trained and tested: notebooks, pytest, Lightning, the Hugging Face Trainer."""
