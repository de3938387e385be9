"""The IPE policy language: model, parser, lint, evaluation, rendering, versions, learning."""
